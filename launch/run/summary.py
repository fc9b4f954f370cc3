"""The results of a run: a table for the terminal, summary.json and loss.png in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any

import numpy as np

from caat.data.marks import COUNTS
from caat.data.prepared import Prepared
from caat.data.shards import read_unigram, sequence_count
from caat.parallel.data_axis import PURPOSES
from caat.parallel.mesh import Mesh
from caat.planning.costs import sync_bytes
from caat.runs.reading import by_source
from caat.training.checkpoint.folder import checkpoint_name
from caat.training.plot import plot_loss
from caat.training.progress import loss_text
from caat.training.trackers.jsonl import read_records
from conf.partition import shared_channels
from conf.schema import Config
from conf.sync import wire_format
from launch.command.errors import only_warned

# The fields of a step's record that the figures need.
WAYS = ("forward", "backward")
MEASURED = {"loss", "tokens", "tokens_per_second", "step_seconds", "data_wait_seconds", "ratio"}
MEASURED |= {f"tensor_parallel_bytes_{way}" for way in WAYS}


def baselines(tokens: Prepared, sequence: int, count: int) -> dict[str, float]:
    """Return the validation loss, in nats per token, of two models without context on the same targets.

    ``uniform``: all pieces equally likely. ``unigram``: piece counts of the training text, plus one each. In
    a mixture, the shares of the sources weight these frequencies, and the losses.
    """
    held_out, shares = tokens.open("validation"), tokens.shares
    size = next(iter(held_out.values())).vocab_size
    frequencies, unigram = np.zeros(size), 0.0
    for name, folder in tokens.folders.items():
        counts = read_unigram(folder, size).astype(np.float64) + 1
        frequencies += float(shares[name]) * counts / counts.sum()
    for name, shards in held_out.items():
        targets = 1, sequence * min(count, sequence_count(shards, sequence))
        text = shards.read(*targets)[shards.marks(*targets) & COUNTS > 0]
        unigram += float(shares[name]) * float(-np.log(frequencies)[text].mean())
    return {"uniform": log(size), "unigram": unigram}


def summarise(config: Config, mesh: Mesh, record: dict, base: Mapping[str, float], folder: Path) -> dict:
    """Print and write the results of a run: ``record`` of its last step, ``base`` from :func:`baselines`."""
    # Benchmarks have separate lines. If the disk was full for a while, some steps or all are missing.
    logged = read_records(folder / "metrics.jsonl")
    records = [each for each in logged if each.keys() >= MEASURED] or [record]
    sent, full = _mean_bytes(config, mesh, records)
    # The first steps warm up caches.
    rates = [r["tokens_per_second"] for r in records[2:] or records]
    summary = {
        "validation_loss": record["validation_loss"],
        **_by_source("validation_loss", record),
        **({"test_loss": record["test_loss"]} if "test_loss" in record else {}),
        **_by_source("test_loss", record),
        "uniform_loss": base["uniform"],
        "unigram_loss": base["unigram"],
        **_by_source("epochs", record),
        "trained_tokens": record["tokens"],
        "skipped_steps": record["skipped_steps"],
        "tokens_per_second": float(np.median(rates)),
        "data_wait_share": sum(r["data_wait_seconds"] for r in records)
        / sum(r["step_seconds"] for r in records),
        "tensor_parallel_bytes_per_step": sent,
        "tensor_parallel_bytes_per_step_full_synchronisation": full,
        "data_parallel_bytes_per_step": _data_parallel(records, "bytes"),
        "data_parallel_calls_per_step": _data_parallel(records, "calls"),
        **_islands(records),
        "bytes_saved": 1 - sum(sent.values()) / sum(full.values()) if any(full.values()) else 0.0,
        "run": str(folder),
        "checkpoint": str(folder / "checkpoints" / checkpoint_name(config.train.steps)),
        "plot": str(folder / "loss.png"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    title = f"{config.model.name}, {mesh.shards} shards, sync.ratio {config.sync.describe_ratio()}"
    with only_warned("loss.png"):
        plot_loss(records, base, title, folder / "loss.png")
    _print(summary, mesh)
    return summary


def _by_source(figure: str, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = by_source(figure, record)
    return {f"{figure}_by_source": found} if found else {}


def _sources(summary: Mapping[str, Any]) -> dict[str, str]:
    epochs = summary.get("epochs_by_source", {})
    return {
        f"  of {name}": f"{loss_text(loss)} nats per token, after {epochs[name]:.2f} epochs"
        for name, loss in summary.get("validation_loss_by_source", {}).items()
    }


def _tests(summary: Mapping[str, Any]) -> dict[str, str]:
    if "test_loss" not in summary:
        return {}
    found = {"test loss": summary["test_loss"]}
    found |= {f"  of {name}: test": loss for name, loss in summary.get("test_loss_by_source", {}).items()}
    return {name: f"{loss_text(loss)} nats per token" for name, loss in found.items()}


def _data_parallel(records: Sequence[Mapping[str, int]], what: str) -> dict[str, int]:
    """Return the mean ``bytes`` or ``calls`` of a step by purpose: exchanges of islands add to some."""
    return {
        purpose: round(fmean(each[f"data_parallel_{what}_{purpose}"] for each in records))
        for purpose in PURPOSES
    }


def _islands(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what islands exchanged, on average over the steps; nothing if there are none."""
    outer = [record for record in records if "islands_bytes_changes" in record]
    if not outer:
        return {}
    sent = sum(
        value for record in outer for name, value in record.items() if name.startswith("islands_bytes_")
    )
    waited = sum(record["islands_wait_seconds"] for record in outer)
    figures = {
        "islands_bytes_per_step": sent / len(outer),
        "islands_wait_share": waited / sum(record["step_seconds"] for record in outer),
    }
    if "islands_present" in outer[-1]:
        figures["islands_rounds"] = outer[-1]["islands_round"]
        # A resumed run counts anew.
        figures["islands_rounds_failed"] = outer[-1]["islands_rounds_failed"]
        figures["islands_most_present"] = max(record["islands_present"] for record in outer)
    return figures


def _mean_bytes(config: Config, mesh: Mesh, records: Sequence[Mapping]) -> tuple[dict, dict]:
    """Return the mean tensor-parallel bytes of a step by direction, and those of full synchronisation."""
    sent = [{way: each[f"tensor_parallel_bytes_{way}"] for way in WAYS} for each in records]
    full = [
        full_sync_bytes(config, mesh, each["ratio"], its, _tokens_of_replica(each, mesh))
        for each, its in zip(records, sent, strict=True)
    ]
    ours, theirs = ({way: round(fmean(its[way] for its in steps)) for way in WAYS} for steps in (sent, full))
    return ours, theirs


def _tokens_of_replica(record: Mapping[str, Any], mesh: Mesh) -> int:
    """Return the tokens of one replica in a step: a resumed run may have another batch and other replicas."""
    replicas = record.get("replicas", mesh.replicas)  # older runs did not record them
    return round(record["tokens_per_second"] * record["step_seconds"] / replicas)


def full_sync_bytes(
    config: Config, mesh: Mesh, ratio: float, sent: dict[str, int], tokens: int
) -> dict[str, int]:
    """Return the bytes that full synchronisation would send in a step that ``sent`` these at ``ratio``.

    ``tokens`` are those of one replica. Full synchronisation sends full messages inside the layers, and all
    activations in their own type. A run may have been on one process for a while, which sends nothing.
    """
    if not any(sent.values()):
        return dict(sent)
    c, model = config.train, config.model
    channels = shared_channels(model.hidden, ratio, mesh.shards)
    wire, own = config.sync.wire_format(c.precision), wire_format("auto", c.precision)
    layers = sync_bytes(model, model.hidden, tokens, own) - sync_bytes(model, channels, tokens, wire)
    embedding = tokens * (own.token_bytes(model.hidden) - wire.token_bytes(model.hidden))
    return {"forward": sent["forward"] + layers, "backward": sent["backward"] + layers + embedding}


def _print(summary: dict, mesh: Mesh) -> None:
    rows = {
        "validation loss": f"{loss_text(summary['validation_loss'])} nats per token "
        f"(uniform guess {summary['uniform_loss']:.4f}, unigram model {summary['unigram_loss']:.4f})",
        **_sources(summary),
        **_tests(summary),
        "trained": f"{summary['trained_tokens']:,} tokens at {summary['tokens_per_second']:,.0f} tokens/s, "
        f"{summary['data_wait_share']:.2%} of the time waiting for data",
    }
    if summary["skipped_steps"]:
        rows["skipped steps"] = f"{summary['skipped_steps']} (loss or gradient not finite)"
    if not any(summary["tensor_parallel_bytes_per_step"].values()):
        rows["tensor-parallel traffic"] = "none: all shards are in this process"
    else:
        ours = summary["tensor_parallel_bytes_per_step"]
        full = summary["tensor_parallel_bytes_per_step_full_synchronisation"]
        for way in ours:
            rows[f"sent {way}"] = (
                f"{ours[way] / 2**20:.1f} MiB per step and process, {ours[way] / full[way]:.0%} of the "
                f"{full[way] / 2**20:.1f} MiB of full synchronisation"
            )
    if mesh.data_size > 1:
        sizes, calls = summary["data_parallel_bytes_per_step"], summary["data_parallel_calls_per_step"]
        rows["sent between replicas"] = (
            f"{sizes['gradients'] / 2**20:.1f} MiB of gradients and {sizes['weights'] / 2**20:.1f} MiB of "
            f"weights per step and process, in {sum(calls.values())} messages"
        )
    if "islands_rounds" in summary:
        rows["rounds of islands"] = (
            f"{summary['islands_rounds']} made the model, {summary['islands_rounds_failed']} failed; at most "
            f"{summary['islands_most_present']} islands were there"
        )
    if mesh.islands.processes > 1 or "islands_rounds" in summary:
        rows["sent between islands"] = (
            f"{summary['islands_bytes_per_step'] / 2**20:.3f} MiB per step and process on average, "
            f"{summary['islands_wait_share']:.2%} of the time waiting for it"
        )
    rows |= {"checkpoint": summary["checkpoint"], "loss plot": summary["plot"], "run folder": summary["run"]}
    rows["use it"] = f"caat generate checkpoint={quote(summary['run'])} prompt='The '"
    width = max(map(len, rows)) + 2
    print()
    for name, text in rows.items():
        print(f"{name:<{width}}{text}")
    print(Path(summary["run"]) / "summary.json")
