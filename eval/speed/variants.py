"""The variants that the communication benchmarks time: the same stack with different synchronisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.sums import SumOptions
from caat.parallel.wire import WIRE_DTYPES
from caat.supervision.device import PRECISIONS
from conf.bench import BenchGenerateConfig, BenchStackConfig
from eval.speed.peer_stacks import autotp_stack, domino_stack, megatron_core_stack, torch_stack
from eval.speed.stack import OurStack, copy_weights, megatron_stack
from layers.host_cache import cache_of

# Makes the step to time from a stack on a device.
MakeStep = Callable[[BenchStackConfig, torch.device, nn.Module], Callable[[], float]]


@dataclass
class Variant:
    """One way to do the sums of a step. ``step`` returns this process's share of the loss."""

    mode: str
    ratio: float
    step: Callable[[], float]
    # None for a peer, whose collectives we cannot count.
    messages: Collectives | None


def network_variants(
    config: BenchStackConfig, device: torch.device, make_step: MakeStep | None = None
) -> list[Variant]:
    """Return no communication, full synchronisation, and ours at every ratio: none, blocking, overlapped.

    The overlapped variant also runs with each of ``config.wire_dtypes``.
    """
    group, make = dist.new_group(), make_step or _step
    variants = [_plain(config, device, "none", None, make), _plain(config, device, "full", group, make)]
    for ratio in config.ratios:
        variants.append(
            _ours(config, device, "none", ratio, make, group=None, options=SumOptions(overlap=False))
        )
        variants.append(
            _ours(config, device, "partial", ratio, make, group=group, options=SumOptions(overlap=False))
        )
        variants += _overlapped(config, device, ratio, group, make)
    return variants


def prefill_variants(config: BenchStackConfig, device: torch.device) -> list[Variant]:
    """Return the same variants with a step that reads the prompts into a cache."""
    return network_variants(config, device, partial(_generation_step, prompt=True))


def decode_variants(config: BenchStackConfig, device: torch.device) -> list[Variant]:
    """Return the same variants with a step that generates all new tokens, one by one."""
    return network_variants(config, device, partial(_generation_step, prompt=False))


def peer_variants(config: BenchStackConfig, device: torch.device) -> list[Variant]:
    """Return no communication, the installed peers, and ours.

    Raises ``ArithmeticError`` if a peer's loss or gradient differs from ours at ratio 1: it would not be
    doing the same work.
    """
    group = dist.new_group()
    variants = [_plain(config, device, "none", None, _step)]
    ours = _our_stack(config, _mesh(config, None), 1.0)
    stacks = {
        "torch parallelize_module": torch_stack(config, device, ours),
        "megatron-core": megatron_core_stack(config, ours),
        "DeepSpeed AutoTP": autotp_stack(config, ours),
        "DeepSpeed-Domino": domino_stack(config, _mesh(config, group), ours),
    }
    expected = _loss_and_gradient(config, device, _our_stack(config, _mesh(config, group), 1.0))
    for name, stack in stacks.items():
        if stack is not None:
            _check_same(name, _loss_and_gradient(config, device, stack), expected, config.precision)
            variants.append(Variant(name, 1.0, _step(config, device, stack), None))
    for ratio in config.ratios:
        variants += _overlapped(config, device, ratio, group, _step)
        if ratio == 1 and config.batch > 1:
            variants.append(
                _ours(config, device, "halves", 1.0, _step, group=group, options=SumOptions(halves=True))
            )
    return variants


def _loss_and_gradient(config: BenchStackConfig, device, stack: nn.Module) -> tuple[Tensor, Tensor]:
    """Return this process's share of the loss, and the input's gradient, which passes through every layer."""
    x = _input(config, device)
    loss = stack.to(device, x.dtype)(x)
    loss.backward()
    assert x.grad is not None
    return loss.detach().float(), x.grad.float()


def _check_same(name: str, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], precision: str):
    for what, ours, theirs in zip(("loss", "gradient"), expected, found, strict=True):
        off = float((theirs - ours).norm() / ours.norm())
        if not off <= (0.05 if precision == "bf16" else 1e-4):
            raise ArithmeticError(f"the {what} of {name} differs from ours by {off:.1e} relative to ours")


def _mesh(
    config: BenchStackConfig, group: dist.ProcessGroup | None, options: SumOptions | None = None
) -> Mesh:
    """Return a mesh of P shards on P processes; without a ``group`` nothing is sent."""
    messages = Collectives(config.processes if group else 1, group, options)
    return Mesh(config.processes, config.processes, dist.get_rank(), tensor=messages)


def _ours(
    config: BenchStackConfig,
    device,
    mode: str,
    ratio: float,
    make_step: MakeStep,
    *,
    group,
    options: SumOptions,
) -> Variant:
    mesh = _mesh(config, group, options)
    return Variant(mode, ratio, make_step(config, device, _our_stack(config, mesh, ratio)), mesh.tensor)


def _overlapped(config: BenchStackConfig, device, ratio: float, group, make_step: MakeStep) -> list[Variant]:
    named = {f"overlap, {name}": SumOptions(WIRE_DTYPES[name]) for name in config.wire_dtypes}
    wires = {"overlap": SumOptions()} | named
    return [
        _ours(config, device, mode, ratio, make_step, group=group, options=options)
        for mode, options in wires.items()
    ]


def _our_stack(config: BenchStackConfig, mesh: Mesh, ratio: float) -> OurStack:
    torch.manual_seed(0)
    return OurStack(config.shape, mesh, ratio)


def _plain(config: BenchStackConfig, device, mode: str, group, make_step: MakeStep) -> Variant:
    mesh = _mesh(config, group)
    stack = megatron_stack(config.shape, mesh)
    copy_weights(_our_stack(config, mesh, 1.0), stack)
    return Variant(mode, 1.0, make_step(config, device, stack), mesh.tensor)


def _input(config: BenchStackConfig, device: torch.device) -> Tensor:
    torch.manual_seed(1)
    size = (config.batch, config.sequence, config.hidden)
    return torch.randn(*size, device=device, dtype=PRECISIONS[config.precision]).requires_grad_()


def _step(config: BenchStackConfig, device: torch.device, stack: nn.Module) -> Callable[[], float]:
    stack = stack.to(device, PRECISIONS[config.precision])
    x = _input(config, device)

    def step() -> float:
        stack.zero_grad()
        loss = stack(x)
        loss.backward()
        return loss.item()  # waits for the device

    return step


def _generation_step(
    config: BenchGenerateConfig, device: torch.device, stack: nn.Module, prompt: bool
) -> Callable[[], float]:
    dtype = PRECISIONS[config.precision]
    stack = stack.to(device, dtype)
    torch.manual_seed(1)
    x = torch.randn(config.batch, config.sequence, config.hidden, device=device, dtype=dtype)
    no_padding = torch.zeros(config.batch, dtype=torch.long, device=device)
    mesh, capacity = _mesh(config, None), config.sequence + config.new_tokens
    cache = cache_of(config.cache)(config.shape, mesh, no_padding, capacity, dtype)

    @torch.no_grad()
    def read() -> float:
        cache.rewind(0)
        return stack(x, cache).item()  # waits for the device

    @torch.no_grad()
    def write() -> float:
        cache.rewind(config.sequence)
        # Each token is needed to choose the next.
        return [stack(x[:, -1:], cache).item() for _ in range(config.new_tokens)][-1]

    read()
    return read if prompt else write
