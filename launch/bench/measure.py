"""One process of a communication benchmark: the same stack, its sums made in every way, taking turns.

``python -m launch.bench.measure SETTINGS OUT`` on each of the P processes; the first one writes ``OUT``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.wire import Wire
from caat.training.device import choose_device, start_process_group, stop_process_group
from conf.bench import BenchStackConfig
from launch.bench.stack import MegatronStack, OurStack
from launch.bench.timing import Times, take_turns


def main(settings: Path, out: Path) -> None:
    config = BenchStackConfig(**json.loads(settings.read_text()))
    local_rank = int(os.environ["LOCAL_RANK"])
    device = choose_device(config.device, local_rank, config.processes)
    start_process_group(device)
    rows = measure(config, device)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(rows))
    stop_process_group()


@dataclasses.dataclass
class Variant:
    """One way to make the sums of a step."""

    mode: str
    ratio: float
    step: Callable[[], None]
    messages: Collectives


def measure(config: BenchStackConfig, device: torch.device) -> list[dict]:
    """Rows of the modes none, full, partial and overlap. Collective; the same rows on every rank."""
    group = dist.new_group()
    variants = [_megatron(config, device, "none", None), _megatron(config, device, "full", group)]
    for ratio in config.ratios:
        variants.append(_ours(config, device, "none", ratio, None, Wire(overlap=False)))
        variants.append(_ours(config, device, "partial", ratio, group, Wire(overlap=False)))
        variants.append(_ours(config, device, "overlap", ratio, group, Wire(overlap=True)))
    runs = {f"{v.mode} {v.ratio} {number}": v.step for number, v in enumerate(variants)}
    sizes = [_bytes_of_a_step(v) for v in variants]
    alone = {
        size["bytes_forward"]: _messages_alone(config, device, v)
        for size, v in zip(sizes, variants, strict=True)
    }
    runs |= {f"alone {size}": run for size, run in alone.items()}
    times = take_turns(runs, config.rounds, before=dist.barrier, show=dist.get_rank() == 0)
    times = {name: _slowest(values) for name, values in times.items()}

    rows = []
    for name, variant, size in zip(runs, variants, sizes, strict=False):
        exposed = times[name].above(times["none 1.0 0"])
        rows.append(
            {
                "mode": variant.mode,
                "ratio": variant.ratio,
                "step_ms": times[name].median,
                "spread_ms": times[name].spread,
                "exposed_ms": exposed.median,
                **size,
                "communication_ms": times[f"alone {size['bytes_forward']}"].median,
            }
        )
    return rows


def _bytes_of_a_step(variant: Variant) -> dict[str, int]:
    """Inside the layers, by direction, and around them: the head's or the embedding's, and norm weights."""
    variant.step()
    sent = variant.messages.sent
    inside = {f"bytes_{way}": sent[way, "sync"] for way in ("forward", "backward")}
    return inside | {"bytes_ends": sum(sent.values()) - sum(inside.values())}


def _mesh(config: BenchStackConfig, group: dist.ProcessGroup | None, wire: Wire) -> Mesh:
    """P shards on P processes; without a ``group`` nothing is sent."""
    sent = Collectives(config.processes if group else 1, group, wire)
    return Mesh(config.processes, config.processes, dist.get_rank(), tensor=sent)


def _megatron(config: BenchStackConfig, device: torch.device, mode: str, group) -> Variant:
    mesh = _mesh(config, group, Wire())
    torch.manual_seed(0)
    return _variant(config, device, mode, 1.0, MegatronStack(config.shape, mesh), mesh)


def _ours(config: BenchStackConfig, device, mode: str, ratio: float, group, wire: Wire) -> Variant:
    mesh = _mesh(config, group, wire)
    torch.manual_seed(0)
    return _variant(config, device, mode, ratio, OurStack(config.shape, mesh, ratio), mesh)


def _variant(config: BenchStackConfig, device, mode: str, ratio: float, model, mesh: Mesh) -> Variant:
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = model.to(device, dtype)
    x = torch.randn(config.batch, config.sequence, config.hidden, device=device, dtype=dtype)
    x.requires_grad_()

    def step() -> None:
        model.zero_grad()
        model(x).backward()
        _finish(device)

    return Variant(mode, ratio, step, mesh.tensor)


def _messages_alone(config: BenchStackConfig, device: torch.device, variant: Variant) -> Callable[[], None]:
    """All sums of the layers in one step, one after another, with nothing to compute between them."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    channels = int(config.hidden * variant.ratio)
    message = torch.zeros(config.batch * config.sequence, channels, device=device, dtype=dtype)

    def run() -> None:
        if variant.messages.processes > 1:
            for _ in range(4 * config.layers):
                variant.messages.start_sum(message, "forward", "alone")()
        _finish(device)

    return run


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _slowest(times: Times) -> Times:
    """A step has ended when its slowest rank has."""
    values = torch.tensor(times.values)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return Times(values.tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
