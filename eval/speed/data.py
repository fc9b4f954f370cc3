"""Measures training steps of replicas whose messages travel in different ways, in turns."""

from __future__ import annotations

import statistics

import torch.distributed as dist

from caat.compression import make_codec
from caat.parallel.mesh import Mesh
from conf.bench import BenchDataConfig
from eval.speed.codecs import gradient_of, relative_error
from eval.speed.measure import slowest
from eval.speed.replicas import NOTHING, PLAIN, Replica, batches_of, model_of, replicas
from eval.speed.timing import Times, take_turns


def data_rows(config: BenchDataConfig) -> list[dict]:
    """Return a row for each variant: time of a step, bytes that this replica sends, and error of the codec.

    ``exposed_ms`` is the time above that of a step in which nothing is sent, ``speed_up`` the time of plain
    DeepSpeed divided by the variant's, both round by round. Collective. Raises ``ArithmeticError`` if a
    variant does not do the same work.
    """
    errors = _errors(config)
    variants = replicas(config)
    _check_same(variants)
    runs = {variant.mode: variant.step for variant in variants}
    times = take_turns(runs, config.rounds, before=dist.barrier, show=dist.get_rank() == 0)
    times = {mode: slowest(values) for mode, values in times.items()}
    return [_row(variant, times, config) | {"error": errors.get(variant.mode)} for variant in variants]


def _row(variant: Replica, times: dict[str, Times], config: BenchDataConfig) -> dict:
    own = times[variant.mode]
    sent = variant.ledger.totals("gradients", "weights")
    gradients, weights = sent["bytes_gradients"], sent["bytes_weights"]
    return {
        "mode": variant.mode,
        "weights_codec": variant.weights_codec,
        "step_ms": own.median,
        "spread_ms": own.spread,
        "exposed_ms": own.above(times[NOTHING]).median,
        "speed_up": times[PLAIN].ratio_to(own),
        "tokens_per_second": config.step_tokens / own.median * 1e3,
        "bytes": gradients + weights,
        "bytes_gradients": gradients,
        "bytes_weights": weights,
        "encode_ms": statistics.median(variant.coded[-config.rounds :]) if variant.codec else None,
    }


def _errors(config: BenchDataConfig) -> dict[str, float]:
    """Return the relative error of one encoded gradient, by codec; exact ones have none."""
    model = model_of(config, Mesh(1))
    gradient, shapes = gradient_of(model, batches_of(config))
    # What a replica sends is its part of the mean over micro-batches and replicas: `threshold` compares it.
    gradient /= config.accumulation * config.replicas
    codecs = {name: make_codec(name) for name in config.codecs if name != "none"}
    for codec in codecs.values():
        codec.shapes = shapes
    return {name: relative_error(codec, codec.encode(gradient), gradient) for name, codec in codecs.items()}


def _check_same(variants: list[Replica]) -> None:
    """Take two steps: the first loss depends on weights and tokens, the second also on the first update.

    Codecs that lose a part of the gradient, and replicas that send nothing, may differ in the second.
    """
    losses = {variant.mode: [variant.step(), variant.step()] for variant in variants}
    for variant in variants:
        exact = variant.codec in (None, "none") and variant.mode != NOTHING
        for number, allowed in enumerate([1e-5, 1e-3] if exact else [1e-5]):
            loss, expected = losses[variant.mode][number], losses[PLAIN][number]
            if not abs(loss - expected) <= allowed * expected:
                raise ArithmeticError(
                    f"{variant.mode} has a loss of {loss:.6f} in step {number + 1}, DeepSpeed {expected:.6f}"
                )
