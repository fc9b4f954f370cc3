"""The tables and pictures of docs/ablation.md, from run folders or from the figures stored in runs.json.

python docs/ablation/figures.py collect outputs/sweeps/...    # add the figures of each run to runs.json
python docs/ablation/figures.py                               # Markdown tables, docs/images/ablation*.png
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from pictures import draw
from runs import (
    BETWEEN,
    Run,
    best_of,
    collect,
    compared,
    full,
    kept,
    label,
    line,
    loss,
    schedule,
    share_of_bytes,
    variants,
)

from caat.runs.variants import Sample


def tables(runs: list[Run]) -> str:
    """Return the tables of one run length: loss of every variant, loss by source, and 8-bit integers."""
    groups, best = variants(runs), full(runs)
    lines = ["| | bytes | learning rate | seeds | validation loss | minus ratio 1 |", "|---" * 6 + "|"]
    order = sorted(groups.values(), key=lambda g: (label(g[min(g)]), g[min(g)]["optim.lr"]))
    for group in order:
        run = group[min(group)]
        losses = Sample(tuple(loss(each) for _, each in sorted(group.items())))
        cells = (
            label(run),
            f"{share_of_bytes(run):.3g}",
            f"{run['optim.lr']:g}",
            ", ".join(map(str, sorted(group))),
            f"{losses.mean:.4f}" + ("" if losses.spread is None else f" ± {losses.spread:.4f}"),
            "" if group == best else shown(compared(group, best, loss)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *by_source(order, best), "", *eight_bits(order)])


def by_source(groups: Iterable[dict[int, Run]], best: dict[int, Run]) -> list[str]:
    """Bits per byte minus ratio 1 for variants with intervals, each at its best learning rate."""
    shown_groups = [
        group
        for group in best_of(groups)
        if group != best and len(group) > 2 and all(run["bits_per_byte"] for run in group.values())
    ]
    if not shown_groups:
        return []
    names = [label(group[min(group)]) for group in shown_groups]
    lines = [f"| bits per byte minus ratio 1 | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for source in sorted(best[min(best)]["bits_per_byte"]):
        cells = [shown(compared(group, best, score_on(source))) for group in shown_groups]
        lines.append(f"| {source.removeprefix('loss_')} | {' | '.join(cells)} |")
    return lines


def eight_bits(groups: Iterable[dict[int, Run]]) -> list[str]:
    """Loss with 8-bit integers minus that of runs without, at the same ratio and at the same bytes."""
    best = best_of(groups)
    lines = ["| | minus | bytes of each | validation loss |", "|---" * 4 + "|"]
    for group in best:
        run = group[min(group)]
        if run["variant"] not in ("int8", BETWEEN):
            continue
        for other in best:
            base = other[min(other)]
            alike = share_of_bytes(base) == share_of_bytes(run) or schedule(base) == schedule(run)
            if alike and line(base) == "plain" and base["parallel.tensor"] == run["parallel.tensor"]:
                sizes = f"{share_of_bytes(run):.3g}, {share_of_bytes(base):.3g}"
                cells = label(run), label(base), sizes, shown(compared(group, other, loss))
                lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def shown(sample: Sample | None, form: str = "{:+.4f}") -> str:
    if sample is None:
        return ""
    interval = "" if sample.interval is None else f" ± {sample.interval:.4f}"
    return form.format(sample.mean) + interval


def score_on(source: str) -> Callable[[Run], float]:
    return lambda run: run["bits_per_byte"][source]


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"]:
        collect(sys.argv[2:])
    for steps, runs in kept().items():
        print(f"{steps} steps\n\n{tables(runs)}\n")
    draw()
