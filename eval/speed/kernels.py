"""Counts the kernels of a model's pass on a GPU and the bytes that they move, on tensors without data.

The model runs on the meta device: that needs no GPU, and no size is too large. Attention and plain norms are
one operator there, as on CUDA. An operator is one kernel, which reads each of its inputs and writes each of
its outputs once; views are none. For compiled functions, see eval/speed/fused.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caat.parallel.background import Wait, nothing
from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.partial import pointwise
from conf.model import ModelConfig
from eval.speed.fused import FREE, bytes_of, fused_kernels
from layers.gpt import GPT

# Operators that overwrite their first argument without reading it.
OVERWRITES = ("copy_", "zero_", "fill_")
# Operators that read or change the numbers at indices, and which argument these are.
PICKS = {"gather": 2, "embedding": 1, "scatter_add_": 2}
NORM_BACKWARD = "native_layer_norm_backward"


@dataclass(frozen=True)
class Moved:
    """Kernels, and the bytes that they read and write."""

    kernels: int = 0
    bytes: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.kernels + other.kernels, self.bytes + other.bytes)

    def __sub__(self, other: Moved) -> Moved:
        return Moved(self.kernels - other.kernels, self.bytes - other.bytes)


class Counter(TorchDispatchMode):
    """Counts the operators that run under it, by name, and the kernels of functions that it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: dict[str, Moved] = defaultdict(Moved)
        self._paused = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = operator(*args, **(kwargs or {}))
        name = operator._schema.name.removeprefix("aten::")
        if not (self._paused or operator.is_view or name in FREE):
            self._count(name, args, kwargs or {}, result)
        return result

    def _count(self, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        written = bytes_of(result)
        if written == 0:
            return
        if name in PICKS:
            # Only as many numbers are touched as there are indices.
            moved = 2 * written if name != "scatter_add_" else 3 * bytes_of(args[3])
            self.moved[name] += Moved(1, moved + bytes_of(args[PICKS[name]]))
            return
        self.moved[name] += Moved(1, written + bytes_of(args[1:] if name in OVERWRITES else args))
        if name == "baddbmm" and "out" not in kwargs:
            # CUDA first copies the matrix to be added to where the result goes.
            self.moved["copy_"] += Moved(1, 2 * written)
        if name == NORM_BACKWARD:
            # The gradients of the input and of the weight are kernels of their own.
            self.moved[name] += Moved(1, bytes_of(args))

    def compile(self, function: Callable) -> Callable:
        """Return ``function``, of which each run counts as fused kernels, in place of ``torch.compile``."""
        made: dict[tuple, Callable] = {}

        def run(*args: Any, **kwargs: Any) -> Any:
            signature = tuple(map(_kind, tree_leaves((args, kwargs))))
            if signature not in made:
                made[signature] = aot_function(
                    function,
                    fw_compiler=self._fused,
                    bw_compiler=self._fused,
                    partition_fn=min_cut_rematerialization_partition,
                )
            with self.paused(), pointwise.traced():
                return made[signature](*args, **kwargs)

        return run

    def _fused(self, graph: GraphModule, _: object) -> Callable:
        kernels = fused_kernels(graph)

        def run(*inputs: Tensor) -> Any:
            for name, moved in kernels:
                self.moved[name] += Moved(1, moved)
            with self.paused():
                return graph(*inputs)

        return make_boxed_func(run)

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


def _kind(x: object) -> object:
    """Return what a compiled graph assumes of an argument."""
    return (x.shape, x.stride(), x.dtype, x.requires_grad) if isinstance(x, Tensor) else x


class AsOnCuda(TorchFunctionMode):
    """Calls one operator for attention and for a norm, as CUDA does; the meta device would call several."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3], 0.0, True)[0]
        if function is F.rms_norm:
            # There is no fused RMSNorm on the meta device. A LayerNorm without bias moves the same bytes.
            x, shape = args
            return torch.ops.aten.native_layer_norm(x, shape, kwargs["weight"], None, kwargs["eps"])[0]
        return function(*args, **(kwargs or {}))


class Alone(Collectives):
    """One of several processes, without the others: sums are neither sent nor waited for."""

    def all_reduce(self, message: Tensor, *_: object) -> Tensor:  # type: ignore[override]
        return message

    def start_sum(self, *_: object) -> Wait:
        return nothing


def kernels_of(
    c: ModelConfig, mesh: Mesh, ratio: float, micro_batch: int, *, dtype: torch.dtype, compiled: bool
) -> dict[str, dict[str, Moved]]:
    """Return what forward and backward move, by operator: of one block, and of all else, the ends.

    A block is what a second one adds to a model of one. The ends are embedding, head and loss.
    """
    one, two = (
        _pass(replace(c, layers=layers), mesh, ratio, micro_batch, dtype=dtype, compiled=compiled)
        for layers in (1, 2)
    )
    block = {name: two[name] - one[name] for name in two}
    ends = {name: one[name] - block[name] for name in two}
    return {
        part: {name: moved for name, moved in each.items() if moved != Moved()}
        for part, each in (("block", block), ("ends", ends))
    }


def _pass(
    c: ModelConfig, mesh: Mesh, ratio: float, micro_batch: int, *, dtype: torch.dtype, compiled: bool
) -> dict[str, Moved]:
    """Return what forward and backward of a model move, by operator."""
    model = GPT.empty(c, mesh, ratio, device="meta", dtype=dtype)
    tokens = torch.empty((micro_batch, c.sequence), dtype=torch.long, device="meta")
    counter = Counter()
    with pointwise.compiled_by(counter.compile):
        if compiled:
            model.compile_cores()
        with AsOnCuda(), counter:
            model(tokens, tokens).mean().backward()
    return counter.moved
