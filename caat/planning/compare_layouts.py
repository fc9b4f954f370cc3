"""Compare layouts: which fit, their step times, and the fastest, at ratio 1 and at the requested ratio."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from caat.planning.layouts import CHECKPOINTING, Layout, all_layouts, divides, largest_that_fits
from caat.planning.times import Machine, seconds_of
from conf.schema import Config


def compare(config: Config, machine: Machine, limit: int, steps: float) -> list[dict[str, Any]]:
    """Return a row for each number of processes and ZeRO stage.

    For each mode of activation checkpointing, a row has the largest micro-batch that fits into ``limit``
    bytes (0: none fits; None: the replicas do not divide the global batch). It also has the fastest of these
    layouts, with seconds per step and days for ``steps`` steps: at the requested ratio, and at ratio 1 with
    activations sent in their own type.
    """
    full = replace(config, sync=replace(config.sync, ratio=1.0, wire_dtype="auto"))
    rows = []
    for layout in all_layouts(config, machine.world):
        row: dict[str, Any] = {
            "processes": layout.processes, "replicas": layout.replicas, "stage": layout.stage
        }  # fmt: skip
        asked = _that_fit(config, layout, limit)
        nothing = 0 if divides(config, layout) else None
        row |= {mode: nothing for mode in CHECKPOINTING} | {x.checkpointing: x.micro_batch for x in asked}
        row["ratio_1"] = _fastest(full, _that_fit(full, layout, limit), machine, steps)
        row["asked"] = _fastest(config, asked, machine, steps)
        rows.append(row)
    return rows


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest layouts at ratio 1 and at the requested ratio, and the fraction of time saved.

    None if nothing fits.
    """
    found = {
        name: min(
            (row[name] for row in rows if row[name]), key=lambda each: each["step_seconds"], default=None
        )
        for name in ("ratio_1", "asked")
    }
    one, asked = found["ratio_1"], found["asked"]
    if one is None or asked is None:
        return None
    return found | {"saved": 1 - asked["step_seconds"] / one["step_seconds"]}


def _that_fit(config: Config, layout: Layout, limit: int) -> list[Layout]:
    found = (largest_that_fits(config, replace(layout, checkpointing=mode), limit) for mode in CHECKPOINTING)
    return [each for each in found if each is not None]


def _fastest(config: Config, layouts: list[Layout], machine: Machine, steps: float) -> dict[str, Any] | None:
    timed = [(seconds_of(config, layout, machine), layout) for layout in layouts]
    if not timed:
        return None
    seconds, layout = min(timed, key=lambda pair: pair[0])
    return asdict(layout) | {"step_seconds": seconds, "days": steps * seconds / 86400}
