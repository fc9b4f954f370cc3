"""`caat bench link`: step time over a slow network, emulated between network namespaces on this machine."""

from __future__ import annotations

from conf.bench import BenchLinkConfig
from conf.reading.verb import load_verb
from eval.speed.namespaces import shaped_hosts
from eval.speed.predicted import errors_of, shaped_link, with_prediction
from launch.bench.plots import plot_speed_up, plot_steps
from launch.bench.report import Column, Report
from launch.bench.step import COLUMNS
from launch.bench.workers import run_on_hosts


def main(argv: list[str]) -> None:
    config = load_verb(BenchLinkConfig, argv)
    report = Report("link", config.out, {"rate": Column("rate")} | COLUMNS)
    for rate in config.rates:
        with shaped_hosts(config.processes, rate, config.delay, config.burst) as hosts:
            rows = run_on_hosts(hosts, "network", config)
        link = shaped_link(rate, rows)
        for row in with_prediction(rows, config, link):
            report.add(rate=rate, delay=config.delay, **row)
    plot = plot_speed_up if len(config.rates) > 1 else plot_steps
    report.finish(
        f"Forward and backward of {config.layers} blocks, hidden {config.hidden}, {config.batch} x "
        f"{config.sequence} tokens, {config.precision}, on {config.processes} hosts",
        plot,
        [errors_of(report.rows)],
    )
