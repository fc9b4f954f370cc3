"""The tables and the picture of docs/long-contexts.md, from docs/long_contexts/results.jsonl.

python docs/long_contexts/figures.py    # Markdown tables, docs/images/long-contexts.png
"""

from __future__ import annotations

import json
from collections import defaultdict
from math import ceil, exp, log
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy import interp

HERE = Path(__file__).parent
IMAGE = HERE.parent / "images" / "long-contexts.png"
METHODS = {
    "best": "best possible",
    "int8": "caat, `int8`",
    "int4": "caat, `int4`",
    "sparq:32": "SparQ, r = 32",
    "sparq:16": "SparQ, r = 16",
    "sparq:32,mean": "SparQ, r = 32, with its mean",
    "quest": "Quest",
}
COLOURS = {
    "best": "#7f7f7f",
    "int8": "#4c72b0",
    "int4": "#55a868",
    "sparq:32": "#dd8452",
    "sparq:16": "#c44e52",
    "sparq:32,mean": "#ccb974",
    "quest": "#8172b3",
}
# Components of a head, and bytes of a number.
HEAD_DIM, NUMBER = 64, 4
Row = dict[str, Any]


def read() -> list[Row]:
    """Return the rows, each with its loss minus that of the whole cache, and its bytes over the link."""
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    places = ("model", "kind", "length", "number")
    whole = {tuple(row[name] for name in places): row for row in rows if row["method"] == "full"}
    for row in rows:
        row["above"] = row["loss"] - whole[tuple(row[name] for name in places)]["loss"]
        row["bytes"] = link_bytes(row["method"], row["length"], row["keep"])
    return rows


def link_bytes(method: str, tokens: int, keep: int) -> int:
    """Return the bytes per KV head and token that come from the host if no row is on the device yet.

    Keys and values of ``keep`` rows; SparQ also reads r components of each key.
    """
    components = int(method.split(",")[0].partition(":")[2] or 0)
    return NUMBER * (2 * HEAD_DIM * keep + components * tokens)


def table(rows: list[Row], model: str, length: int) -> str:
    """Return a Markdown table of one model at one length: loss, missing mass and facts by ``keep``."""
    here = [row for row in rows if (row["model"], row["length"]) == (model, length)]
    keeps = sorted({row["keep"] for row in here if row["keep"]})
    lines = [f"| {length:,} tokens | " + " | ".join(f"keep {keep}" for keep in keeps) + " |"]
    lines.append("|---" * (len(keeps) + 1) + "|")
    for method, name in METHODS.items():
        cells = [
            _cell([row for row in here if (row["method"], row["keep"]) == (method, keep)]) for keep in keeps
        ]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    texts, facts = ([row for row in rows if row["kind"] == kind] for kind in ("text", "fact"))
    parts = []
    if texts:
        parts.append(
            f"{mean(row['above'] for row in texts):+.4f} ({mean(row['missing'] for row in texts):.3f})"
        )
    if facts:
        parts.append(f"{sum(row['right'] for row in facts)}/{len(facts)}")
    return ", ".join(parts)


def against_sparq(rows: list[Row], model: str, length: int) -> str:
    """Return a Markdown table of the bytes with which caat's index has the error of SparQ.

    Between two measured numbers of rows, the logarithms of error and bytes lie on a line. Errors outside
    caat's are left out, and so are its rows that are no worse than the whole cache.
    """
    lines = [f"| {length:,} tokens | nats | KiB | caat, KiB | times fewer |", "|---" * 5 + "|"]
    ours = [(size, error) for size, error in _series(rows, model, length, "int8") if error > 0]
    for method in ("sparq:16", "sparq:32"):
        for size, error in _series(rows, model, length, method):
            if ours[-1][1] <= error <= ours[0][1]:
                needed = exp(interp(-log(error), *zip(*((-log(e), log(b)) for b, e in ours), strict=True)))
                cells = f"{error:.4f}", f"{size:,.0f}", f"{needed:,.0f}", f"{size / needed:.2f}"
                lines.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _series(rows: list[Row], model: str, length: int, method: str) -> list[tuple[float, float]]:
    """Return KiB of a token and loss above the whole cache's, by growing KiB."""
    found = defaultdict(list)
    for row in rows:
        if (row["model"], row["length"], row["method"], row["kind"]) == (model, length, method, "text"):
            found[row["bytes"]].append(row["above"])
    return sorted((size / 1024, mean(values)) for size, values in found.items())


def draw(rows: list[Row]) -> None:
    """Draw the loss above that of the whole cache against the bytes of a token, by model and length."""
    texts = [row for row in rows if row["kind"] == "text" and row["keep"]]
    panels = sorted({(row["model"], row["length"]) for row in texts})
    rows_of_two = ceil(len(panels) / 2)
    figure = Figure(figsize=(9.6, 4.0 * rows_of_two), layout="constrained")
    axes_of = figure.subplots(rows_of_two, 2, squeeze=False).flatten()
    for axes, (model, length) in zip(axes_of, panels, strict=False):
        for method, name in METHODS.items():
            points = _series(rows, model, length, method)
            if not points:
                continue
            # Other methods may hide the points of the best.
            shape = {"marker": "o", "ms": 10, "fillstyle": "none"} if method == "best" else {"marker": "o"}
            label = name.replace("`", "")
            axes.plot(*zip(*points, strict=True), label=label, color=COLOURS[method], **shape)
        whole = NUMBER * 2 * HEAD_DIM * length / 1024
        axes.axvline(whole, color="gray", lw=0.8)
        axes.text(
            whole, 0.97, "all rows ", ha="right", va="top", fontsize=8, transform=axes.get_xaxis_transform()
        )
        axes.axhline(0.01, color="gray", lw=0.8, ls=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set(xlabel="KiB per token and KV head")
        axes.set_title(f"{model}, {length:,} tokens", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("loss minus that of the whole cache (nats)")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(IMAGE, dpi=130)


if __name__ == "__main__":
    found = read()
    for model, length in sorted({(row["model"], row["length"]) for row in found}):
        print(f"{model}\n\n{table(found, model, length)}\n\n{against_sparq(found, model, length)}\n")
    draw(found)
