"""`caat bench collectives`: all-reduces on a network of any topology, against the optimum."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from caat.topology.bound import least_seconds
from caat.topology.choose import best_schedule
from caat.topology.chunks import owners
from caat.topology.read import topology
from caat.topology.schedule import Schedule
from caat.topology.schedule_file import write_schedule
from caat.topology.settings import DELAY, RATE
from conf.bench import BenchCollectivesConfig
from conf.checks import require
from conf.reading.verb import load_verb
from eval.speed.collectives import AllReduce, all_reduces, network_of
from eval.speed.wires import wired_hosts
from launch.bench.memory import check_memory
from launch.bench.plot_collectives import plot_collectives
from launch.bench.report import Column, Report
from launch.bench.workers import run_on_hosts
from launch.command.results import keep_input, result_file

# Most processes that one machine measures.
MOST_HOSTS = 32
# Peak memory of a process in sizes: the buffer, its input, the exact sum, 64-bit integers, a piece's copy.
BUFFERS = 6
# Share of the optimum above which a figure is no rounding.
PASSED = 1.001
COLUMNS = {
    "mode": Column("all-reduce"),
    "steps": Column("steps"),
    "pieces": Column("pieces"),
    "seconds": Column("seconds"),
    "spread": Column("±"),
    "predicted": Column("predicted"),
    "share": Column("% of optimum", 0.01),
    "speed_up": Column("speed-up"),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchCollectivesConfig, argv)
    network = network_of(config)
    require(
        config.simulate or network.nodes <= MOST_HOSTS,
        f"topology={config.topology} has {network.nodes} nodes: at most {MOST_HOSTS} can be measured on one "
        "machine. Give simulate=true to predict them",
    )
    if not config.simulate:
        check_memory(
            f"size={config.size} on {network.nodes} nodes",
            network.nodes * BUFFERS * 4 * config.numbers,
            "give a smaller size, or simulate=true to predict only",
        )
    ways = {way.mode: way for way in all_reduces(config, network, show=True)}
    new = None
    if config.schedule is not None and config.schedule not in ways:
        new = result_file(config.schedule, "schedule")
    report = Report("collectives", config.out, COLUMNS)
    keep_input(report.out, config.out, topology=config.topology, schedule=config.schedule)
    measured: dict[str, dict] = {}
    if not config.simulate:
        with wired_hosts(network, config.burst) as hosts:
            measured = {row["mode"]: row for row in run_on_hosts(hosts, "collectives", config)}
    optimum = least_seconds(network, 4 * config.numbers)
    for way in ways.values():
        report.add(**_row(way, measured.get(way.mode), optimum))
    for row in report.rows:
        row["speed_up"] = _time(report.rows[0]) / _time(row)
    best = min(report.rows[1:], key=_time)
    schedule = ways[best["mode"]].schedule
    if new is not None:
        new.parent.mkdir(parents=True, exist_ok=True)
        write_schedule(schedule, new)
    report.finish(
        f"All-reduce of {config.size} on {config.topology} at {config.rate}"
        f"{', predicted' if config.simulate else ''}: optimum {optimum:.3g} s, speed-up over gloo's own",
        partial(plot_collectives, network=network, schedule=schedule, name=best["mode"]),
        list(_notes(report.rows, best, config, new, schedule)),
    )


def _row(way: AllReduce, measured: dict | None, optimum: float) -> dict:
    seconds = measured["seconds"] if measured else None
    return {
        "mode": way.mode,
        "steps": way.schedule.steps,
        "pieces": way.pieces,
        "seconds": seconds,
        "spread": measured["spread"] if measured else None,
        "predicted": way.predicted,
        "optimum": optimum,
        "share": optimum / (seconds or way.predicted),
    }


def _time(row: dict) -> float:
    """Return the measured seconds, or the predicted ones if nothing was measured."""
    return row["seconds"] or row["predicted"]


def _notes(
    rows: list[dict], best: dict, config: BenchCollectivesConfig, new: Path | None, schedule: Schedule
) -> Iterator[str]:
    slower = "" if best["speed_up"] >= 1 else ", slower than gloo's own"
    yield f"Fastest schedule: {best['mode']}, {_time(best):.3g} s, {best['share']:.0%} of the optimum{slower}"
    if any(row["share"] > PASSED for row in rows):
        yield (
            "Above 100 %: on this network, a sum and its copies may overlap, or nodes sum unequal shares, "
            "which the optimum does not count"
        )
    if new is not None:
        yield f"Its schedule is in {new}"
    if new is not None or best["mode"] == config.schedule:
        how = f"data_sync.schedule={config.schedule}"
    else:
        auto = best_schedule(topology(config.topology, RATE, DELAY), "all-reduce", 4 * config.numbers).method
        how = f"data_sync.schedule=auto data_sync.topology={config.topology}"
        if auto != best["mode"]:
            yield f"data_sync.schedule=auto would take {auto}, the fastest at 1 Gbit/s and 0.1 ms a link"
            yield "Give this benchmark schedule=FILE to write its fastest schedule there"
            how = "data_sync.schedule=FILE"
    if "auto" not in how and len(set(owners(schedule))) < schedule.nodes:
        # Its file cannot bring every replica the sums that it owns from ZeRO 1 on.
        how += " zero.stage=0 train.precision=fp32"
    processes = f"launch.processes={schedule.nodes} parallel.processes=1"
    yield f"To train along it with as many replicas: caat pretrain {processes} {how}"
