"""The runs of docs/ablation.md: the figures stored in runs.json, and comparisons between runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from caat.runs.variants import Sample

RUNS = Path(__file__).with_name("runs.json")
# The settings that distinguish the runs.
SETTINGS = ("sync.ratio", "parallel.tensor", "sync.private_scale", "optim.lr", "train.steps")
SHARDS = 8
# The name of sync.wire_dtype=int8 itself.
BETWEEN = "int8 between processes"
# Bytes relative to bfloat16: the parts are sent in 8 bits, and the sum returns in 16 or 8.
WIRE = {"int8_parts": 0.75, "int8": 0.5, BETWEEN: 0.5}
Run = dict[str, Any]


def collect(folders: Iterable[str]) -> None:
    """Add the settings and final figures of every finished run in ``folders`` to runs.json."""
    found = {_identity(run): run for run in json.loads(RUNS.read_text())} if RUNS.is_file() else {}
    for path in sorted(path for folder in folders for path in Path(folder).rglob("config.yaml")):
        status = path.with_name("status.json")
        if not status.is_file() or json.loads(status.read_text())["status"] != "finished":
            continue
        config = yaml.safe_load(path.read_text())
        if not _is_of_the_ablation(config):
            continue
        records = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
        # The record of the last step, merged with its benchmarks.
        last = {
            name: v for each in records if each["step"] == records[-1]["step"] for name, v in each.items()
        }
        scores = {name.split("/")[1]: v for name, v in last.items() if name.endswith("/bits_per_byte")}
        variant = _json(path.with_name("variant.json"))
        dtype = config["sync"]["wire_dtype"]
        if variant is None and dtype != "auto" and last["tensor_parallel_bytes_forward"]:
            variant = f"{dtype} between processes"
        if not path.with_name("variant.json").is_file() and not scores:
            # Measured later by `caat evaluate`, which does not know variants.
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
    in_order = sorted(found.values(), key=lambda run: json.dumps(run, sort_keys=True))
    RUNS.write_text("[\n" + ",\n".join(json.dumps(run) for run in in_order) + "\n]\n")


def kept() -> dict[int, list[Run]]:
    """Return the runs of runs.json by their length in steps, longest first."""
    by_length: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(json.loads(RUNS.read_text()), key=lambda run: -run["train.steps"]):
        by_length[run["train.steps"]].append(run)
    return dict(by_length)


def _is_of_the_ablation(config: dict[str, Any]) -> bool:
    """Return whether a run differs from others only by SETTINGS: longer.py and axes.py train otherwise."""
    c, islands = config["train"], config["parallel"].get("islands", 1)
    exact = config.get("data_sync", {}).get("codec", "none") == "none"
    return (c["precision"], islands, config["optim"]["schedule"]) == ("fp32", 1, "cosine") and exact


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _identity(run: Run) -> str:
    return json.dumps([run[name] for name in (*SETTINGS, "variant", "seed")], sort_keys=True)


def _at(config: dict[str, Any], name: str) -> Any:
    group, key = name.split(".")
    return config[group][key]


def variants(runs: Iterable[Run]) -> dict[tuple, dict[int, Run]]:
    """Group runs by their settings other than the seed, then by seed."""
    found: dict[tuple, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        found[tuple(str(run[name]) for name in (*SETTINGS, "variant"))][run["seed"]] = run
    return dict(found)


def label(run: Run) -> str:
    """Return the name of a variant, without its learning rate and its length."""
    ratios = schedule(run).items()
    words = [
        "ratio "
        + ", ".join(f"{ratio:g} from step {step}" if step else f"{ratio:g}" for step, ratio in ratios)
    ]
    if run["parallel.tensor"] != SHARDS:
        words.append(f"{run['parallel.tensor']} shards")
    if is_scaled(run):
        words.append(f"scale √{run['parallel.tensor']}")
    if run["variant"] is not None:
        words.append(run["variant"])
    return ", ".join(words)


def schedule(run: Run) -> dict[int, float]:
    """Return each ratio by the number of steps before it applies."""
    ratio = run["sync.ratio"]
    return {int(step): each for step, each in ratio.items()} if isinstance(ratio, dict) else {0: ratio}


def share_of_bytes(run: Run) -> float:
    """Return the bytes inside the layers as a fraction of full synchronisation in bfloat16."""
    changes = [*schedule(run).items(), (run["train.steps"], 0.0)]
    lengths = [(later - step) * ratio for (step, ratio), (later, _) in pairwise(changes)]
    return sum(lengths) / run["train.steps"] * WIRE.get(run["variant"], 1.0)


def compared(variant: dict[int, Run], base: dict[int, Run], figure: Callable[[Run], float]) -> Sample | None:
    """Return ``figure`` minus that of ``base``, seed by seed; None if they have no seed in common."""
    seeds = sorted(variant.keys() & base.keys())
    return Sample(tuple(figure(variant[seed]) - figure(base[seed]) for seed in seeds)) if seeds else None


def full(runs: Iterable[Run]) -> dict[int, Run]:
    """Return ratio 1 at its best learning rate, by seed."""
    groups = variants(runs).values()
    return min((g for g in groups if label(g[min(g)]) == "ratio 1"), key=first_loss)


def best_of(groups: Iterable[dict[int, Run]]) -> list[dict[int, Run]]:
    """Keep the best learning rate of each variant, judged by the loss of the first seed."""
    found: dict[str, dict[int, Run]] = {}
    for group in groups:
        name = label(group[min(group)])
        if name not in found or first_loss(group) < first_loss(found[name]):
            found[name] = group
    return list(found.values())


def is_scaled(run: Run) -> bool:
    return run["sync.private_scale"] == "sqrt"


def line(run: Run) -> str | None:
    """Return plain, scaled or int8 for a kind that was run at several ratios; None for other variants."""
    if len(schedule(run)) > 1 or run["variant"] not in (None, "int8"):
        return None
    return run["variant"] or ("scaled" if is_scaled(run) else "plain")


def loss(run: Run) -> float:
    return run["validation_loss"]


def first_loss(group: dict[int, Run]) -> float:
    return group[min(group)]["validation_loss"]
