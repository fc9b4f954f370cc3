"""Codecs of gradients on one core or GPU: speed against a plain copy, bytes, and error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from caat.compression import Codec
from caat.compression.codec import Parts, Shapes
from eval.speed.timing import Times, take_turns

SEED = 1
COPY = "copy"


def gradient_like(numbers: int) -> Tensor:
    """Return a random message [numbers] with the heavy tails of a gradient, the same in every run.

    Each number is normal, with a log-normal standard deviation: exp(z) for a standard normal z.
    """
    generator = torch.Generator().manual_seed(SEED)
    spread = torch.randn(numbers, generator=generator).exp_()
    return torch.randn(numbers, generator=generator).mul_(spread)


def gradient_of(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, Shapes]:
    """Return the gradient [n] of the sum of the mean losses of ``batches``, and the shapes of its parameters.

    ``batches`` are the arguments of ``model``: tokens and targets, [rows, sequence] each, and what follows.
    """
    for batch in batches:
        model(*batch).mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.view(-1) for g in gradients]), [tuple(g.shape) for g in gradients]


def measure(codecs: Mapping[str, Codec], message: Tensor, rounds: int) -> tuple[list[dict], float]:
    """Return a row per codec, and the GB/s at which ``message`` is copied, on the device of ``message``.

    On a CPU the process keeps to one thread. GB/s count the float32 numbers of the message; spreads are half
    the interquartile range. ``memcpy_share`` is the median over the rounds of the time of the copy divided by
    that of encoding. A codec that returns the message itself has no speed.
    """
    torch.set_num_threads(1)
    target, parts = torch.empty_like(message), {name: codec.encode(message) for name, codec in codecs.items()}
    rows = {name: _figures(codec, parts[name], message) for name, codec in codecs.items()}
    runs: dict[str, Callable[[], object]] = {COPY: lambda: target.copy_(message)}
    for name, codec in codecs.items():
        if parts[name][0] is not message:
            runs[f"encode {name}"] = partial(codec.encode, message)
            runs[f"decode {name}"] = partial(codec.decode, parts[name], len(message))
    if message.is_cuda:
        runs = {name: partial(_completed, run) for name, run in runs.items()}
    times = take_turns(runs, rounds)
    for name, row in rows.items():
        for way in ("encode", "decode"):
            row |= _rates(way, times.get(f"{way} {name}"), message.nbytes)
        encoding = times.get(f"encode {name}")
        row["memcpy_share"] = times[COPY].ratio_to(encoding) if encoding else None
    return [{"mode": name, **row} for name, row in rows.items()], message.nbytes / times[COPY].median / 1e6


def _completed(run: Callable[[], object]) -> None:
    run()
    torch.cuda.synchronize()


def _figures(codec: Codec, parts: Parts, message: Tensor) -> dict[str, float | None]:
    return {
        "relative_bytes": sum(part.nbytes for part in parts) / message.nbytes,
        "error": relative_error(codec, parts, message),
    }


def relative_error(codec: Codec, parts: Parts, message: Tensor) -> float:
    """Return the L2 norm of what ``codec`` loses of ``message``, relative to that of ``message``."""
    left = message.double() - codec.decode(parts, len(message)).double()
    return float(left.norm() / message.double().norm())


def _rates(way: str, times: Times | None, size: int) -> dict[str, float | None]:
    """Return the median, spread and best GB/s for ``size`` bytes."""
    if times is None:
        return dict.fromkeys((f"{way}_gbps", f"{way}_spread", f"{way}_best_gbps"))
    rate = size / times.median / 1e6
    return {
        f"{way}_gbps": rate,
        f"{way}_spread": rate * times.spread / times.median,
        f"{way}_best_gbps": size / min(times.values) / 1e6,
    }
