"""`caat bench generate`: what partial synchronisation saves in prefill and decoding."""

from __future__ import annotations

from conf.bench import BenchGenerateConfig
from conf.reading.verb import load_verb
from eval.speed.namespaces import shaped_hosts
from launch.bench.report import MIB, Column, Report
from launch.bench.workers import run_here, run_on_hosts

COLUMNS = {
    "mode": Column("sums"),
    "ratio": Column("ratio"),
    "prefill_ms": Column("prefill ms"),
    "spread_ms": Column("±"),
    "exposed_ms": Column("exposed"),
    "exposed_share": Column("of full"),
    "bytes_forward": Column("MiB sent", MIB),
    "decode_tokens_per_second": Column("new tokens/s"),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchGenerateConfig, argv)
    where = f"hosts over {config.rate}" if config.rate else "processes of this machine"
    report = Report("generate", config.out, COLUMNS)
    if config.rate is None:
        prefill, decode = (run_here(kind, config) for kind in ("prefill", "decode"))
    else:
        with shaped_hosts(config.processes, config.rate, config.delay, config.burst) as hosts:
            prefill, decode = (run_on_hosts(hosts, kind, config) for kind in ("prefill", "decode"))
    full_ms = next(row["exposed_ms"] for row in prefill if row["mode"] == "full")
    for reading, writing in zip(prefill, decode, strict=True):
        report.add(
            mode=reading["mode"],
            ratio=reading["ratio"],
            prefill_ms=reading["step_ms"],
            spread_ms=reading["spread_ms"],
            exposed_ms=reading["exposed_ms"],
            exposed_share=reading["exposed_ms"] / full_ms,
            communication_ms=reading["communication_ms"],
            bytes_forward=reading["bytes_forward"],
            decode_ms=writing["step_ms"],
            decode_spread_ms=writing["spread_ms"],
            decode_tokens_per_second=config.batch * config.new_tokens / writing["step_ms"] * 1e3,
        )
    report.finish(
        f"{config.layers} blocks, hidden {config.hidden}, {config.batch} prompts of {config.sequence} "
        f"tokens, then {config.new_tokens} more, {config.precision}, {config.processes} {where}, cache in "
        f"{config.cache.place} memory",
    )
