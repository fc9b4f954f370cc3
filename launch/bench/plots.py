"""Plots of the benchmarks, drawn from the rows of their reports."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes

from conf.units import rate_bytes
from launch.command.figures import figure_with_axes

COLOURS = {
    "none": "#7f7f7f",
    "full": "#c44e52",
    "partial": "#4c72b0",
    "overlap": "#55a868",
    "overlap, int8": "#dd8452",
}
OTHER = "#8172b3"


def plot_steps(rows: list[dict], title: str, path: Path) -> None:
    """Plot one bar per row: computation, and the communication that stays exposed."""
    figure, axes = figure_with_axes(4.6)
    limit = next(row["step_ms"] for row in rows if row["mode"] == "none")
    shown = [row for row in rows if row["mode"] != "none"]
    labels = ["no communication", *(_label(row) for row in shown)]
    colours = ["#bbbbbb", *(COLOURS.get(row["mode"], OTHER) for row in shown)]
    axes.barh(labels, [limit] * len(labels), color="#dddddd")
    above = [0.0, *(row["step_ms"] - limit for row in shown)]
    axes.barh(labels, above, left=limit, color=colours)
    axes.errorbar(
        [limit, *(row["step_ms"] for row in shown)],
        labels,
        xerr=[0.0, *(row["spread_ms"] for row in shown)],
        fmt="none",
        ecolor="black",
        lw=1,
        capsize=2,
    )
    for row in shown:
        predicted = row.get("predicted_ms")
        if predicted is not None:
            axes.plot(predicted, _label(row), "k|", ms=14, mew=1.5)
    axes.invert_yaxis()
    axes.set(xlabel="step (ms): arithmetic grey, exposed communication in colour, | predicted")
    _title(axes, title)
    figure.savefig(path, dpi=130)


def plot_speed_up(rows: list[dict], title: str, path: Path) -> None:
    """Plot the speed-up of each mode over full synchronisation against the rate of the link."""
    figure, axes = figure_with_axes(4.2)
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    full = {row["rate"]: row for row in rows if row["mode"] == "full"}
    shown = [row for row in rows if row["mode"] not in ("none", "full") and row["ratio"] < 1]
    fainter = sorted({row["ratio"] for row in shown}, reverse=True)
    for key in dict.fromkeys((row["mode"], row["ratio"]) for row in shown):
        mode, ratio = key
        series = {row["rate"]: row for row in rows if (row["mode"], row["ratio"]) == key}
        x = [_gbit(rate) for rate in rates]
        colour, alpha = COLOURS.get(mode, OTHER), 1 / (1 + fainter.index(ratio))
        measured = [full[rate]["step_ms"] / series[rate]["step_ms"] for rate in rates]
        predicted = [full[rate]["predicted_ms"] / series[rate]["predicted_ms"] for rate in rates]
        axes.plot(x, measured, "o-", label=_label(series[rates[0]]), color=colour, alpha=alpha)
        axes.plot(x, predicted, "--", lw=1, color=colour, alpha=alpha)
    axes.plot([], [], "--", color="gray", lw=1, label="predicted")
    axes.axhline(1.0, color="gray", lw=0.8)
    _against_rate(axes, rates, "speed-up over full synchronisation")
    _title(axes, title)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_replicas(rows: list[dict], title: str, path: Path) -> None:
    """Plot the speed-up of each mode over plain DeepSpeed against the rate of the link; bars for one rate."""
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    series: dict[str, list[float]] = {}
    for row in rows:
        series.setdefault(row["mode"], []).append(row["speed_up"])
    figure, axes = figure_with_axes(4.2)
    if len(rates) == 1:
        axes.barh(list(series), [values[0] for values in series.values()], color=OTHER)
        axes.axvline(1.0, color="gray", lw=0.8)
        axes.invert_yaxis()
        axes.set(xlabel=f"speed-up over plain DeepSpeed at {rates[0]}")
    else:
        for number, (mode, values) in enumerate(series.items()):
            codec = any(row["mode"] == mode and row.get("encode_ms") is not None for row in rows)
            style = "o-" if codec else "s:"
            axes.plot([_gbit(rate) for rate in rates], values, style, label=mode, color=f"C{number}")
        axes.axhline(1.0, color="gray", lw=0.8)
        _against_rate(axes, rates, "speed-up over plain DeepSpeed")
        axes.legend(frameon=False, fontsize=8)
    _title(axes, title)
    figure.savefig(path, dpi=130)


def plot_codecs(rows: list[dict], title: str, path: Path) -> None:
    """Plot the speed of encoding and decoding of each codec, and that of a plain copy."""
    shown = [row for row in rows if row["encode_gbps"] is not None]
    figure, axes = figure_with_axes(1.6 + 0.45 * len(shown))
    for way, shift, colour in (("encode", -0.2, "#4c72b0"), ("decode", 0.2, "#bbbbbb")):
        places = [number + shift for number in range(len(shown))]
        rates, spreads = ([row[f"{way}_{name}"] for row in shown] for name in ("gbps", "spread"))
        axes.barh(places, rates, 0.4, xerr=spreads, color=colour, label=way, error_kw={"lw": 1})
    axes.axvline(rows[0]["memcpy_gbps"], color="gray", ls="--", lw=1, label="copy")
    labels = [f"{row['mode']}\n{row['relative_bytes']:.2g} of float32's bytes" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set(xlabel="GB/s of float32")
    _title(axes, title)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_cache(rows: list[dict], title: str, path: Path) -> None:
    """Plot the time of a new token of each mode, with its bytes and its error."""
    figure, axes = figure_with_axes(1.6 + 0.45 * len(rows))
    labels = [f"{row['mode']}\n{row['bytes'] / 2**20:.3g} MiB, {row['error']:.2g} nats" for row in rows]
    places = range(len(rows))
    times, spreads = ([row[name] for row in rows] for name in ("token_ms", "spread_ms"))
    axes.barh(places, times, xerr=spreads, color=OTHER, error_kw={"lw": 1})
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    for place, row in zip(places, rows, strict=True):
        axes.text(
            row["token_ms"] + row["spread_ms"], place, f"  {row['token_ms']:,.0f}", va="center", fontsize=8
        )
    axes.margins(x=0.1)
    axes.set(xlabel="milliseconds of a new token")
    _title(axes, title)
    figure.savefig(path, dpi=130)


def _against_rate(axes: Axes, rates: list[str], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks([_gbit(rate) for rate in rates], [f"{_gbit(rate):g}" for rate in rates])
    axes.minorticks_off()
    axes.set(xlabel="rate of the link (Gbit/s)", ylabel=label)
    axes.grid(alpha=0.25)


def _gbit(rate: str) -> float:
    return rate_bytes(rate) * 8 / 1e9


def _title(axes: Axes, title: str) -> None:
    axes.set_title(fill(title, 90), fontsize=9, loc="left")


def _label(row: dict) -> str:
    return f"{row['mode']}, ratio {row['ratio']:g}"
