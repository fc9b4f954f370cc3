"""`caat bench kernels`: the kernels of a block on a GPU and the bytes that they move, counted without one."""

from __future__ import annotations

from collections.abc import Iterable

from rich.progress import track

from caat.parallel.mesh import Mesh
from caat.supervision.device import PRECISIONS
from conf.bench import BenchKernelsConfig
from conf.reading.verb import load_verb
from eval.speed.fused import ATTENTION, PRODUCTS
from eval.speed.kernels import Alone, Moved, block_kernels
from launch.bench.report import Column, Report

COLUMNS = {
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
    for where, compiled in track(rows, "counting", transient=True):
        mesh, ratio = meshes[where]
        moved = block_kernels(c, mesh, ratio, config.micro_batch, dtype=dtype, compiled=compiled)
        names = {"where": where, "between": "compiled" if compiled else "eager"}
        report.add(**names, operator="all", **_figures(moved, unit))
        if config.operators:
            for name in sorted(moved, key=lambda name: -moved[name].bytes):
                report.add(**names, operator=name, **_figures({name: moved[name]}, unit))
    report.finish(
        f"Kernels of one block of {c.name}, forward and backward, and their bytes between the products, in "
        f"units of one [{config.micro_batch * c.sequence:,}, {c.hidden}] tensor in {config.precision} "
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
