"""`caat bench kernels`: the kernels of a block on a GPU and the bytes that they move, counted without one."""

from __future__ import annotations

from collections.abc import Iterable

from rich.progress import track

from caat.parallel.mesh import Mesh
from caat.supervision.device import PRECISIONS
from conf.bench import BenchKernelsConfig
from conf.reading.verb import load_verb
from eval.speed.fused import ATTENTION, PRODUCTS
from eval.speed.kernels import Alone, Moved, kernels_of
from launch.bench.report import Column, Report

COLUMNS = {
    "part": Column("part"),
    "where": Column("one process of"),
    "between": Column("between products"),
    "operator": Column("operator"),
    "kernels": Column("kernels"),
    "units": Column("units"),
    "product_units": Column("of products"),
    "attention_units": Column("of attention"),
}


def main(argv: list[str]) -> None:
    config = load_verb(BenchKernelsConfig, argv)
    c, n = config.model, config.shards
    columns = {name: column for name, column in COLUMNS.items() if config.operators or name != "operator"}
    report = Report("kernels", config.out, columns)
    meshes = {
        "1, one shard": (Mesh(1), 1.0),
        f"1, {n} shards": (Mesh(n), config.ratio),
        f"{n}, one shard each": (Mesh(n, n, tensor=Alone(n, None)), config.ratio),
    }
    dtype = PRECISIONS[config.precision]
    unit = config.micro_batch * c.sequence * c.hidden * dtype.itemsize
    rows = [(where, compiled) for compiled in (False, True) for where in meshes]
    counted = {
        row: kernels_of(c, *meshes[row[0]], config.micro_batch, dtype=dtype, compiled=row[1])
        for row in track(rows, "counting", transient=True)
    }
    for part in ("block", "ends"):
        for where, compiled in rows:
            moved = counted[where, compiled][part]
            names = {"part": part, "where": where, "between": "compiled" if compiled else "eager"}
            report.add(**names, operator="all", **_figures(moved, unit))
            if config.operators:
                for name in sorted(moved, key=lambda name: -moved[name].bytes):
                    report.add(**names, operator=name, **_figures({name: moved[name]}, unit))
    size = f"[{config.micro_batch * c.sequence:,}, {c.hidden}]"
    report.finish(
        f"Forward and backward of one block of {c.name}, and of its ends (embedding, head, loss): kernels, "
        f"and bytes between the products in units of one {size} tensor in {config.precision} "
        f"({unit / 1e6:.1f} MB); ratio {config.ratio:g} with several shards",
    )


def _figures(moved: dict[str, Moved], unit: int) -> dict[str, float]:
    def units(names: Iterable[str]) -> float:
        return sum(moved[name].bytes for name in names) / unit

    others = moved.keys() - {*PRODUCTS, *ATTENTION}
    return {
        "kernels": sum(each.kernels for each in moved.values()),
        "units": units(others),
        "product_units": units(moved.keys() & {*PRODUCTS}),
        "attention_units": units(moved.keys() & {*ATTENTION}),
    }
