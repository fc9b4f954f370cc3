"""`caat bench cache`: new tokens whose KV cache is in the memory of another host."""

from __future__ import annotations

from dataclasses import replace

from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.folder import find
from conf.bench import BenchCacheConfig
from conf.checks import require
from conf.reading.verb import load_verb
from eval.speed.cache import text_tokens
from eval.speed.namespaces import shaped_hosts
from launch.bench.plots import plot_cache
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_on_hosts

COLUMNS = {
    "mode": Column("cache"),
    "token_ms": Column("token ms"),
    "spread_ms": Column("±"),
    "tokens_per_second": Column("tokens/s"),
    "speed_up": Column("speed-up"),
    "bytes": Column("MiB/token", MIB),
    "error": Column("error (nats)"),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchCacheConfig, argv)
    shape, name = config.shape, "random weights"
    if config.checkpoint is not None:
        folder = find(config.checkpoint)
        name, config = config.checkpoint, replace(config, checkpoint=str(folder))
        shape = read_architecture(folder).model
        require(
            config.sequence <= shape.sequence,
            f"sequence={config.sequence:,} is longer than the model's context of {shape.sequence:,}: its "
            "errors would be those of positions that it has never seen",
        )
        text_tokens(config)
    require(
        config.sparq <= shape.head_size,
        f"sparq={config.sparq} is above the {shape.head_size} components of a head: give fewer, or 0",
    )
    report = Report("cache", config.out, COLUMNS)
    with shaped_hosts(config.processes, config.rate, config.delay, config.burst) as hosts:
        rows = run_on_hosts(hosts, "cache", config)
    for row in rows:
        report.add(**row)
    report.finish(
        f"New tokens after {config.batch} x {config.sequence:,} of {name}, {shape.layers} layers of "
        f"{shape.kv_heads} x {shape.head_size} KV channels in fp32, memory behind {config.rate}; "
        "speed-up over fetching all",
        plot_cache,
    )
