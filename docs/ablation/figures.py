"""The tables and the picture of docs/ablation.md, from the run folders or from the figures kept in runs.json.

python docs/ablation/figures.py collect outputs/sweeps/...    # into runs.json: what each run measured
python docs/ablation/figures.py                               # Markdown tables; docs/images/ablation.png
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.report.statistics import Sample

HERE = Path(__file__).parent
RUNS, PICTURE = HERE / "runs.json", HERE.parent / "images" / "ablation.png"
# What tells the runs apart.
SETTINGS = ("sync.ratio", "parallel.tensor", "sync.private_scale", "optim.lr", "train.steps")
SHARDS = 8
# Bytes of the ways to sum of variants.py, of what is sent both ways in bfloat16.
WIRE = {"int8": 0.5, "int8_forward": 0.75}
Run = dict[str, Any]


def collect(folders: Iterable[str]) -> None:
    """Keep the settings and the last figures of every finished run below ``folders``, beside what is kept."""
    found = {_identity(run): run for run in json.loads(RUNS.read_text())} if RUNS.is_file() else {}
    for path in sorted(path for folder in folders for path in Path(folder).rglob("config.yaml")):
        status = path.with_name("status.json")
        if not status.is_file() or json.loads(status.read_text())["status"] != "finished":
            continue
        config = yaml.safe_load(path.read_text())
        records = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
        # The last step's record, and its benchmarks beside it.
        last = {
            name: v for each in records if each["step"] == records[-1]["step"] for name, v in each.items()
        }
        scores = {name.split("/")[1]: v for name, v in last.items() if name.endswith("/bits_per_byte")}
        variant = _json(path.with_name("variant.json"))
        if variant is None and not scores:
            # Measured afterwards, by `caat evaluate`; it knows no variants.
            results = (_json(path.with_name("evaluation.json")) or {"results": {}})["results"]
            scores = {
                task: each["bits_per_byte"] for task, each in results.items() if "bits_per_byte" in each
            }
        run = (
            {name: _at(config, name) for name in SETTINGS}
            | {"variant": variant}
            | {"seed": config["seed"], "tokens": last["tokens"], "validation_loss": last["validation_loss"]}
            | {"bits_per_byte": scores}
        )
        found[_identity(run)] = run
    kept = sorted(found.values(), key=lambda run: json.dumps(run, sort_keys=True))
    RUNS.write_text("[\n" + ",\n".join(json.dumps(run) for run in kept) + "\n]\n")


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _identity(run: Run) -> str:
    return json.dumps([run[name] for name in (*SETTINGS, "variant", "seed")], sort_keys=True)


def _at(config: dict[str, Any], name: str) -> Any:
    group, key = name.split(".")
    return config[group][key]


def variants(runs: Iterable[Run]) -> dict[tuple, dict[int, Run]]:
    """Runs by seed, by their other settings."""
    found: dict[tuple, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        found[tuple(str(run[name]) for name in (*SETTINGS, "variant"))][run["seed"]] = run
    return dict(found)


def label(run: Run) -> str:
    """What a variant is called, but for its learning rate and its length."""
    ratios = schedule(run).items()
    words = [
        "ratio "
        + ", ".join(f"{ratio:g} from step {step}" if step else f"{ratio:g}" for step, ratio in ratios)
    ]
    if run["parallel.tensor"] != SHARDS:
        words.append(f"{run['parallel.tensor']} shards")
    if _is_scaled(run):
        words.append(f"scale √{run['parallel.tensor']}")
    if run["variant"] is not None:
        words.append(run["variant"])
    return ", ".join(words)


def schedule(run: Run) -> dict[int, float]:
    """Ratio by the number of steps done before it holds."""
    ratio = run["sync.ratio"]
    return {int(step): each for step, each in ratio.items()} if isinstance(ratio, dict) else {0: ratio}


def share_of_bytes(run: Run) -> float:
    """What is sent inside the layers, as a share of full synchronisation in bfloat16 (which 8 bits halve)."""
    changes = [*schedule(run).items(), (run["train.steps"], 0.0)]
    lengths = [(later - step) * ratio for (step, ratio), (later, _) in pairwise(changes)]
    return sum(lengths) / run["train.steps"] * WIRE.get(run["variant"], 1.0)


def compared(variant: dict[int, Run], base: dict[int, Run], figure: Callable[[Run], float]) -> Sample | None:
    """``figure`` less that of ``base``, seed by seed."""
    seeds = sorted(variant.keys() & base.keys())
    return Sample(tuple(figure(variant[seed]) - figure(base[seed]) for seed in seeds)) if seeds else None


def shown(sample: Sample | None, form: str = "{:+.4f}") -> str:
    if sample is None:
        return ""
    interval = "" if sample.interval is None else f" ± {sample.interval:.4f}"
    return form.format(sample.mean) + interval


def full(runs: Iterable[Run]) -> dict[int, Run]:
    """Ratio 1 at its best learning rate, by seed."""
    groups = variants(runs).values()
    return min((g for g in groups if label(g[min(g)]) == "ratio 1"), key=_first_loss)


def tables(runs: list[Run]) -> str:
    """Every variant of one length: seeds, loss, difference to ratio 1; then by source of the text."""
    groups, best = variants(runs), full(runs)
    lines = ["| | learning rate | seeds | validation loss | less ratio 1 |", "|---|---|---|---|---|"]
    order = sorted(groups.values(), key=lambda g: (label(g[min(g)]), g[min(g)]["optim.lr"]))
    for group in order:
        run = group[min(group)]
        loss = Sample(tuple(each["validation_loss"] for _, each in sorted(group.items())))
        spread = "" if loss.spread is None else f" ± {loss.spread:.4f}"
        delta = "" if group == best else shown(compared(group, best, _loss))
        seeds = ", ".join(map(str, sorted(group)))
        lines.append(f"| {label(run)} | {run['optim.lr']:g} | {seeds} | {loss.mean:.4f}{spread} | {delta} |")
    return "\n".join([*lines, "", *by_source(order, best)])


def by_source(groups: Iterable[dict[int, Run]], best: dict[int, Run]) -> list[str]:
    """Bits per byte less ratio 1, of the variants with intervals, each at its best learning rate."""
    shown_groups = [
        group
        for group in best_of(groups)
        if group != best and len(group) > 2 and all(run["bits_per_byte"] for run in group.values())
    ]
    if not shown_groups:
        return []
    names = [label(group[min(group)]) for group in shown_groups]
    lines = [f"| bits per byte less ratio 1 | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for source in sorted(best[min(best)]["bits_per_byte"]):
        cells = [shown(compared(group, best, _score_on(source))) for group in shown_groups]
        lines.append(f"| {source.removeprefix('loss_')} | {' | '.join(cells)} |")
    return lines


def best_of(groups: Iterable[dict[int, Run]]) -> list[dict[int, Run]]:
    """Of variants that differ in the learning rate alone, the one whose first seed has the lowest loss."""
    found: dict[str, dict[int, Run]] = {}
    for group in groups:
        name = label(group[min(group)])
        if name not in found or _first_loss(group) < _first_loss(found[name]):
            found[name] = group
    return list(found.values())


def draw(runs: list[Run]) -> None:
    """Loss against bytes, each variant at its best learning rate, less ratio 1 with the same seed."""
    lengths = sorted({run["train.steps"] for run in runs}, reverse=True)
    figure = Figure(figsize=(6.4 * len(lengths), 4.6), layout="constrained")
    for axes, steps in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        _draw_length(axes, [run for run in runs if run["train.steps"] == steps])
        axes.set_title(f"{steps:,} steps", fontsize=10, loc="left")
    figure.savefig(PICTURE, dpi=130)


def _draw_length(axes: Axes, runs: list[Run]) -> None:
    base = full(runs)
    axes.axhline(0, color="#888888", lw=1)
    axes.plot(1, 0, "o", color="#888888")
    axes.annotate("ratio 1", (1, 0), (-16, 8), textcoords="offset points", fontsize=8)
    groups = best_of(variants(run for run in runs if run["parallel.tensor"] == SHARDS).values())
    for scaled, color, side in ((True, "#0072b2", -0.008), (False, "#d55e00", 0.008)):
        line = []
        for group in groups:
            run, delta = group[min(group)], compared(group, base, _loss)
            if delta is None or group == base or _is_scaled(run) != scaled:
                continue
            x = share_of_bytes(run) + side
            axes.plot([x] * len(delta.values), delta.values, "_", color=color, ms=9, alpha=0.7)
            if run["variant"] is None and len(schedule(run)) == 1:
                line.append((x, delta.mean))
            else:
                axes.plot(x, delta.mean, "D", color=color, mfc="white")
                axes.annotate(label(run), (x, delta.mean), (8, -3), textcoords="offset points", fontsize=7)
        name = f"private channels times √{SHARDS}" if scaled else "private channels as they are"
        if line:
            axes.plot(*zip(*sorted(line), strict=True), "o-", color=color, lw=1, label=name)
    axes.set(
        xlabel="bytes inside the layers, as a share of full synchronisation",
        ylabel="validation loss less that of ratio 1\n(nats per token; a dash is one seed)",
    )
    axes.legend(frameon=False, fontsize=8)
    axes.margins(x=0.1, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)


def _is_scaled(run: Run) -> bool:
    return run["sync.private_scale"] == "sqrt"


def _loss(run: Run) -> float:
    return run["validation_loss"]


def _score_on(source: str) -> Callable[[Run], float]:
    return lambda run: run["bits_per_byte"][source]


def _first_loss(group: dict[int, Run]) -> float:
    return group[min(group)]["validation_loss"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"]:
        collect(sys.argv[2:])
    kept = json.loads(RUNS.read_text())
    for steps in sorted({run["train.steps"] for run in kept}, reverse=True):
        print(f"{steps} steps\n\n{tables([run for run in kept if run['train.steps'] == steps])}\n")
    draw(kept)
