"""GPT, forward and backward, in a mode in which a tensor on another device or of another type is an error.

test_one_device.py runs it in a separate process, as rank 3 of 8 ranks that do not exist. Weights and tokens
are on the meta device, whose operators compute nothing. A tensor on the CPU was created without a device: on
a GPU it would fail or wait for a copy.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caat.parallel.background import Background
from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.sums import SumOptions
from conf.model import ModelConfig
from layers.gpt import GPT
from tests.models import FAMILIES, SCALED, SMALL

SHARDS = 8
WIRES = {
    "auto": SumOptions(),
    "sums in bfloat16": SumOptions(sum_dtype=torch.bfloat16),
    "float32": SumOptions(torch.float32),
    "int8": SumOptions(torch.int8),
    "waiting": SumOptions(overlap=False),
}
# Angles and scales of 8-bit integers are float64 for precision: they are one number per token each.
FLOAT64_NUMBERS = SMALL.sequence * SMALL.head_size


class OneDevice(TorchDispatchMode):
    """Raises if an operator returns a tensor that is not on the meta device or is needlessly wide."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                assert x.device.type == "meta", f"{func} made a tensor on {x.device}"
                assert x.dtype != torch.float64 or x.numel() <= FLOAT64_NUMBERS, (
                    f"{func} made {x.shape} of float64"
                )
        return out


def check(
    processes: int,
    ratio: float,
    dtype: torch.dtype,
    options: SumOptions,
    checkpointing: str,
    *,
    config: ModelConfig = SMALL,
    masked: bool = False,
) -> None:
    mesh = Mesh(SHARDS)
    if processes > 1:
        mesh = Mesh(SHARDS, processes, 3, tensor=Collectives(processes, dist.group.WORLD, options))
    model = GPT.empty(config, mesh, ratio, 1.0, checkpointing, device="meta", dtype=dtype)
    text = torch.zeros(2, SMALL.sequence + 1, dtype=torch.long, device="meta")
    borders = torch.zeros(4, dtype=torch.int32, device="meta") if masked else None
    with OneDevice():
        losses = model(text[:, :-1], text[:, 1:], borders)
        losses.mean().backward()
    assert losses.dtype is torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype is dtype, name


def main() -> None:
    # Run in this thread, because a dispatch mode only sees its own.
    Background.run = lambda self, work, message: work(message) or (lambda: None)  # type: ignore[method-assign]
    dist.init_process_group("fake", rank=3, world_size=SHARDS, store=FakeStore())
    plain = product(
        (1,), (1.0, 0.5, 0.0), (torch.bfloat16, torch.float32), ("auto",), ("none", "selective", "full")
    )
    sent = product((SHARDS,), (1.0, 0.5, 0.0), (torch.bfloat16, torch.float32), WIRES, ("none", "full"))
    cases = [*plain, *sent]
    for processes, ratio, dtype, wire, checkpointing in cases:
        try:
            check(processes, ratio, dtype, WIRES[wire], checkpointing)
        except Exception as error:
            error.add_note(
                f"processes {processes}, ratio {ratio}, {dtype}, wire {wire}, checkpointing {checkpointing}"
            )
            raise
    for scaling in SCALED.values():
        check(1, 0.5, torch.bfloat16, SumOptions(), "none", config=replace(SMALL, rope_scaling=scaling))
    for config in FAMILIES.values():
        check(SHARDS, 0.5, torch.bfloat16, SumOptions(), "selective", config=config)
    for processes in (1, SHARDS):
        check(processes, 0.5, torch.bfloat16, SumOptions(), "selective", masked=True)
    print(f"{len(cases) + len(SCALED) + len(FAMILIES) + 2} cases")


if __name__ == "__main__":
    main()
