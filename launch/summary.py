"""The end of a run: a table for the terminal, summary.json and loss.png in the run folder."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from caat.data.shards import TokenShards
from caat.parallel.mesh import Mesh
from caat.training.costs import sync_bytes
from caat.training.plot import plot_loss
from conf.schema import Config
from layers.linear import shared_channels


def baselines(tokens: Path) -> dict[str, float]:
    """Validation loss, in nats per token, of two models that look at nothing.

    ``uniform``: every piece alike. ``unigram``: the training text's piece frequencies, plus one each.
    """
    held_out = TokenShards(tokens, "validation")
    counts = np.load(tokens / "unigram.npy").astype(np.float64) + 1
    text = held_out.read(0, len(held_out))
    return {
        "uniform": log(held_out.vocab_size),
        "unigram": float(-np.log(counts / counts.sum())[text].mean()),
    }


def summarise(config: Config, mesh: Mesh, record: dict, tokens: Path, folder: Path) -> dict:
    """Print and write what the run came to; ``record`` is its last step's."""
    c, base = config.train, baselines(tokens)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sent = {way: record[f"tensor_parallel_bytes_{way}"] for way in ("forward", "backward")}
    full = full_sync_bytes(config, mesh, sent)
    # The first steps warm caches up.
    rates = [r["tokens_per_second"] for r in records[2:] or records]
    summary = {
        "validation_loss": record["validation_loss"],
        "uniform_loss": base["uniform"],
        "unigram_loss": base["unigram"],
        "trained_tokens": record["tokens"],
        "skipped_steps": record["skipped_steps"],
        "tokens_per_second": float(np.median(rates)),
        "data_wait_share": sum(r["data_wait_seconds"] for r in records)
        / sum(r["step_seconds"] for r in records),
        "tensor_parallel_bytes_per_step": sent,
        "tensor_parallel_bytes_per_step_full_synchronisation": full,
        "run": str(folder),
        "checkpoint": str(folder / "checkpoints" / f"step-{c.steps:08}"),
        "plot": str(folder / "loss.png"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    title = f"{config.model.name}, {mesh.shards} shards, sync.ratio {config.sync.ratio}"
    plot_loss(records, base, title, folder / "loss.png")
    _print(summary, mesh)
    return summary


def full_sync_bytes(config: Config, mesh: Mesh, sent: dict[str, int]) -> dict[str, int]:
    """Bytes of the same step at sync.ratio = 1: ``sent``, with full messages inside the layers."""
    if mesh.processes == 1:
        return dict(sent)
    c, model = config.train, config.model
    tokens = c.global_batch // mesh.data_size * c.sequence
    channels = shared_channels(model.hidden, config.sync.ratio, mesh.shards)
    element_size = 2 if c.precision == "bf16" else 4
    missing = sync_bytes(model, model.hidden - channels, tokens, element_size)
    return {way: n + missing for way, n in sent.items()}


def _print(summary: dict, mesh: Mesh) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "validation loss",
        f"{summary['validation_loss']:.4f} nats per token  (uniform guess {summary['uniform_loss']:.4f}, "
        f"unigram model {summary['unigram_loss']:.4f})",
    )
    speed = f"{summary['tokens_per_second']:,.0f} tokens/s, waiting for data {summary['data_wait_share']:.2%}"
    table.add_row("trained", f"{summary['trained_tokens']:,} tokens at {speed}")
    if summary["skipped_steps"]:
        table.add_row("skipped steps", f"{summary['skipped_steps']} (loss or gradient not finite)")
    if mesh.processes == 1:
        table.add_row("tensor-parallel traffic", "none: all shards are in this process")
    else:
        ours = summary["tensor_parallel_bytes_per_step"]
        full = summary["tensor_parallel_bytes_per_step_full_synchronisation"]
        both = "  ".join(
            f"{way} {ours[way] / 2**20:.1f} MiB of {full[way] / 2**20:.1f} at full synchronisation "
            f"({ours[way] / full[way]:.0%})"
            for way in ours
        )
        table.add_row("tensor-parallel traffic", f"per step and process: {both}")
    table.add_row("checkpoint", summary["checkpoint"])
    table.add_row("loss plot", summary["plot"])
    table.add_row("run folder", summary["run"])
    Console(soft_wrap=True).print(table)
    print(Path(summary["run"]) / "summary.json")
