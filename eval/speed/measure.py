"""Measures the variants of a communication benchmark in turns, on all processes together."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from caat.parallel.wire import to_wire
from caat.supervision.device import PRECISIONS
from conf.bench import BenchStackConfig
from conf.partition import shared_channels
from eval.speed.timing import Times, take_turns
from eval.speed.variants import (
    Variant,
)


def measure(variants: list[Variant], config: BenchStackConfig, device: torch.device) -> list[dict]:
    """Return a row for each variant; exposed communication is the time above the first variant's.

    Collective: every process gets the same rows.
    """
    sizes = [_bytes_of_a_step(variant) for variant in variants]
    runs: dict[str, Callable] = {f"{v.mode} {v.ratio} {number}": v.step for number, v in enumerate(variants)}
    names = list(runs)
    for variant, size in zip(variants, sizes, strict=True):
        if size["bytes_forward"]:
            runs[_alone(variant, size)] = _messages_alone(variant, config, device)
    times = take_turns(runs, config.rounds, before=dist.barrier, show=dist.get_rank() == 0)
    times = {name: slowest(values) for name, values in times.items()}
    peers = [times[name] for name, v in zip(names, variants, strict=True) if v.messages is None]
    fastest = min(peers, key=lambda peer: peer.median, default=None)
    return [
        {
            "mode": variant.mode,
            "ratio": variant.ratio,
            "step_ms": times[name].median,
            "spread_ms": times[name].spread,
            "exposed_ms": times[name].above(times[names[0]]).median,
            **size,
            "communication_ms": times[_alone(variant, size)].median if size["bytes_forward"] else 0.0,
            **({"of_fastest_peer": times[name].ratio_to(fastest)} if fastest else {}),
        }
        for name, variant, size in zip(names, variants, sizes, strict=True)
    ]


def _bytes_of_a_step(variant: Variant) -> dict[str, int | None]:
    """Return a step's bytes inside the layers, by direction, and outside: head or embedding, norm weights."""
    variant.step()
    if variant.messages is None:
        return {"bytes_forward": None, "bytes_backward": None, "bytes_ends": None}
    variant.messages.ledger.reset()
    variant.step()
    sent = variant.messages.ledger.sent
    inside = {f"bytes_{way}": sent[way, "sync"] for way in ("forward", "backward")}
    return {**inside, "bytes_ends": sum(sent.values()) - sum(inside.values())}


def _alone(variant: Variant, size: dict[str, int | None]) -> str:
    """Name the run of a variant's messages alone; variants with equal messages share it."""
    assert variant.messages is not None
    return f"alone {variant.messages.options.wire_dtype} {size['bytes_forward']}"


def _messages_alone(variant: Variant, config: BenchStackConfig, device: torch.device) -> Callable[[], None]:
    """Return a function that repeats the last step's sums inside the layers, without computation between."""
    messages = variant.messages
    assert messages is not None
    inside = messages.ledger.totals("sync")
    count, size = inside["calls_sync"], inside["bytes_sync"]
    channels = shared_channels(config.hidden, variant.ratio, config.processes)
    token = torch.zeros(1, channels, device=device, dtype=PRECISIONS[config.precision])
    message = token.repeat(size // count // to_wire(token, messages.options.wire_dtype).nbytes, 1)

    def run() -> None:
        for _ in range(count):
            messages.start_sum(message, "forward", "alone")()
        message[0, 0].item()  # waits for the device

    return run


def slowest(times: Times) -> Times:
    """Return the times of the slowest rank, which ends the step."""
    values = torch.tensor(times.values)
    if dist.get_backend() == "nccl":
        values = values.cuda()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return Times(values.tolist())
