"""The step times that the planner's formulas predict for the rows of the communication benchmarks.

The speed of the arithmetic is that of the row that sends nothing, and the cost of a message is measured where
the rows were (:mod:`eval.speed.messages`). Encoding by a codec takes no time in these formulas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from caat.planning.costs import flops_per_token
from caat.planning.data_wait import data_wait
from caat.planning.island_traffic import island_wait
from caat.planning.layouts import Layout
from caat.planning.parameters import local_parameters
from caat.planning.prediction import Link, predict
from conf.bench import BenchDataConfig, BenchIslandsConfig, BenchStackConfig, ReplicaStepsConfig
from conf.codec import parse_codec
from conf.data_sync import DataSyncConfig
from conf.islands import IslandsConfig
from conf.optim import OptimConfig
from conf.processes import ParallelConfig
from conf.schema import Config, TrainConfig
from conf.sync import wire_format
from eval.speed.islands import island_mode, island_settings, synchronous_mode
from eval.speed.messages import Messages
from eval.speed.namespaces import payload_rate
from eval.speed.replicas import NOTHING


def shaped_link(rate: str, rows: Sequence[dict]) -> Link:
    """Return the link between two emulated hosts that send at ``rate``, with delay and cost as measured."""
    messages = Messages.of(rows)
    return Link(payload_rate(rate), messages.delay, messages.cost)


def measured_link(rows: Sequence[dict], config: BenchStackConfig) -> Link:
    """Return the rate of this network, from the largest messages, and its delay, from the smallest."""
    # Other wire dtypes also cost the arithmetic of conversion.
    plain = [row for row in rows if row["bytes_forward"] and ", " not in row["mode"]]
    sent = sorted({(row["bytes_forward"], row["communication_ms"]) for row in plain})
    messages, processes, cost = 4 * config.layers, config.processes, Messages.of(rows).cost
    (small, small_ms), (large, large_ms) = sent[0], sent[-1]
    steps = 2 * (processes - 1)
    if small == large:
        return Link(steps / processes * 2 * large / (large_ms / 1e3), cost=cost)
    per_byte = max(0.0, (large_ms - small_ms) / 1e3 / (2 * (large - small)))
    delay = max(0.0, (small_ms / 1e3 - 2 * small * per_byte) / messages / steps)
    return Link(steps / processes / per_byte if per_byte else float("inf"), delay, cost)


def with_prediction(rows: Sequence[dict], config: BenchStackConfig, link: Link) -> Iterator[dict]:
    """Yield the rows of a stack with ``hidden_ms``, and with the step time that the formula predicts."""
    shape = config.shape
    tokens = config.batch * config.sequence
    limit_ms = next(row["step_ms"] for row in rows if row["mode"] == "none")
    sustained = flops_per_token(shape, config.sequence) * tokens / config.processes / limit_ms * 1e3
    for row in rows:
        mode, _, dtype = row["mode"].partition(", ")
        step = predict(
            shape,
            tokens,
            config.processes,
            mode,
            row["ratio"],
            wire=wire_format(dtype or "auto", config.precision),
            flops_per_second=sustained,
            link=link,
        )
        hidden = max(0.0, row["communication_ms"] - max(0.0, row["exposed_ms"]))
        error = step.seconds * 1e3 / row["step_ms"] - 1
        yield row | {"hidden_ms": hidden, "predicted_ms": step.seconds * 1e3, "error": error}


def with_data_prediction(rows: Sequence[dict], config: BenchDataConfig, link: Link) -> Iterator[dict]:
    """Yield the rows of replicas with the step time that the formula predicts for ours; None for peers.

    It does not know how many numbers a ``threshold`` sends either.
    """
    alone = next(row["step_ms"] for row in rows if row["mode"] == NOTHING) / 1e3
    for row in rows:
        if row["mode"] in config.codecs and parse_codec(row["mode"]).kind != "threshold":
            sync = config.data_sync(row["mode"])
            yield row | {"predicted_ms": (alone + _wait(config, sync, link)) * 1e3}
        else:
            yield row | {"predicted_ms": alone * 1e3 if row["mode"] == NOTHING else None}


def with_island_prediction(rows: Sequence[dict], config: BenchIslandsConfig, link: Link) -> Iterator[dict]:
    """Yield the rows of islands with the step time that the formula predicts for ours; None for peers.

    The arithmetic is AdamW's for all of them.
    """
    alone = next(row["step_ms"] for row in rows if row["mode"] == NOTHING) / 1e3
    waits = {NOTHING: 0.0}
    for codec in config.codecs:
        waits[synchronous_mode(codec)] = _wait(config, DataSyncConfig.both(codec), link)
    for optim, islands in island_settings(config):
        layout = Layout(1, 1, 1, "none", config.micro_batch, config.replicas)
        settings = _config(config, optim, islands)
        # The row that sends nothing sends its loss, too, and a benchmark does not agree on when to stop.
        waits[island_mode(islands)] = island_wait(settings, layout, link, alone, small=0)
    for row in rows:
        wait = waits.get(row["mode"])
        yield row | {"predicted_ms": None if wait is None else (alone + wait) * 1e3}


def errors_of(rows: Sequence[dict]) -> str:
    """Return one line on how far predictions are from what was measured, in the rows that send something."""
    sending = [row for row in rows if row["mode"] != NOTHING and row.get("bytes_forward") != 0]
    errors = [abs(row["predicted_ms"] / row["step_ms"] - 1) for row in sending if row["predicted_ms"]]
    if not errors:
        return "No row has a prediction"
    return (
        f"Predicted and measured steps differ by {median(errors):.1%} in the median of {len(errors)} rows, "
        f"{max(errors):.1%} at most"
    )


def _wait(config: ReplicaStepsConfig, sync: DataSyncConfig, link: Link) -> float:
    """Return the seconds that replicas wait for each other in a step."""
    held = local_parameters(config.model, 1, 1)
    return data_wait(
        held,
        config.replicas,
        1,
        "fp32",
        config.accumulation,
        link=link,
        forward=0.0,
        backward=0.0,
        layers=config.model.layers,
        sync=sync,
    )


def _config(config: BenchIslandsConfig, optim: OptimConfig, islands: IslandsConfig) -> Config:
    """Return the settings of a run that trains like the row of ``islands``."""
    return Config(
        model=config.model,
        optim=optim,
        islands=islands,
        parallel=replace(ParallelConfig(), tensor=1, islands=config.replicas),
        train=TrainConfig(
            sequence=config.model.sequence,
            micro_batch=config.micro_batch,
            global_batch=config.micro_batch * config.accumulation * config.replicas,
            precision="fp32",
        ),
    )
