"""`caat bench step`: what partial synchronisation saves on this machine's own network."""

from __future__ import annotations

from caat.planning.costs import flops_per_token
from caat.planning.prediction import Link, predict
from conf.bench import BenchStackConfig, BenchStepConfig
from conf.reading.verb import load_verb
from conf.sync import wire_format
from launch.bench.plots import plot_steps
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_here

COLUMNS = {
    "mode": Column("sums"),
    "ratio": Column("ratio"),
    "step_ms": Column("step ms"),
    "spread_ms": Column("±"),
    "exposed_ms": Column("exposed"),
    "hidden_ms": Column("hidden"),
    "bytes_forward": Column("MiB sent", MIB),
    "predicted_ms": Column("predicted"),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchStepConfig, argv)
    report = Report("step", config.out, COLUMNS)
    rows = run_here("network", config)
    for row in with_prediction(rows, config, measured_link(rows, config)):
        report.add(**row)
    report.finish(
        f"Forward and backward of {config.layers} blocks, hidden {config.hidden}, {config.batch} x "
        f"{config.sequence} tokens, {config.precision}, {config.processes} processes of this machine",
        plot_steps,
    )


def measured_link(rows: list[dict], config: BenchStackConfig) -> Link:
    """Return the rate of this network, from the largest messages, and its delay, from the smallest."""
    # Other wire dtypes also cost the arithmetic of conversion.
    plain = [row for row in rows if row["bytes_forward"] and ", " not in row["mode"]]
    sent = sorted({(row["bytes_forward"], row["communication_ms"]) for row in plain})
    messages, processes = 4 * config.layers, config.processes
    (small, small_ms), (large, large_ms) = sent[0], sent[-1]
    steps = 2 * (processes - 1)
    if small == large:
        return Link(steps / processes * 2 * large / (large_ms / 1e3))
    per_byte = max(0.0, (large_ms - small_ms) / 1e3 / (2 * (large - small)))
    delay = max(0.0, (small_ms / 1e3 - 2 * small * per_byte) / messages / steps)
    return Link(steps / processes / per_byte, delay) if per_byte else Link(float("inf"), delay)


def with_prediction(rows: list[dict], config: BenchStackConfig, link: Link) -> list[dict]:
    """Return ``rows`` with the hidden communication, and with the step time that the formula predicts."""
    shape = config.shape
    tokens = config.batch * config.sequence
    limit_ms = next(row["step_ms"] for row in rows if row["mode"] == "none")
    sustained = flops_per_token(shape, config.sequence) * tokens / config.processes / limit_ms * 1e3
    found = []
    for row in rows:
        mode, _, dtype = row["mode"].partition(", ")
        wire = wire_format(dtype or "auto", config.precision)
        step = predict(
            shape,
            tokens,
            config.processes,
            mode,
            row["ratio"],
            wire=wire,
            flops_per_second=sustained,
            link=link,
        )
        hidden = max(0.0, row["communication_ms"] - max(0.0, row["exposed_ms"]))
        found.append(
            row
            | {
                "hidden_ms": hidden,
                "predicted_ms": step.seconds * 1e3,
                "error": step.seconds * 1e3 / row["step_ms"] - 1,
            }
        )
    return found
