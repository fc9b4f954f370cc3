"""Prints a plan in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from launch.command.console import console

GIB = 2**30
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer (master weights, moments)",
    "activations": "activations",
    "logits": "logits and loss",
    "buffers": "buffers (messages, temporaries)",
}
MOMENTS = {
    "loss": "at the loss",
    "backward": "in the backward pass",
    "reduce": "when gradients are sent",
    "step": "in the optimizer step",
}


def show(plan: dict[str, Any]) -> None:
    """Print the run, its memory by part, a step by ratio, and the layouts that fit."""
    out = console()
    layout, wire = plan["layout"], plan["wire_dtype"]
    sent = "" if wire == "auto" else f", {wire} on the wire"
    islands = f" on each of {layout['islands']} islands" if layout["islands"] > 1 else ""
    print(
        f"{plan['model']}: {plan['parameters'] / 1e9:.3g} B parameters, {plan['shards']} shards, sync.ratio "
        f"{plan['ratio']}, {plan['precision']}{sent}, on {plan['world']} GPUs ({plan['gpu']}) "
        f"of {plan['nodes']} node(s)\n"
        f"{layout['processes']} processes a replica, {layout['replicas']} replica(s){islands}, "
        f"ZeRO {layout['stage']}, micro-batch {layout['micro_batch']} x {plan['accumulation']}, "
        f"global batch {plan['global_batch']} x {plan['sequence']} tokens, "
        f"activation checkpointing {layout['checkpointing']}"
    )
    if plan["between_replicas"]:
        print(f"between replicas: {plan['between_replicas']}")
    if plan["outer_steps"]:
        print(f"between islands: {plan['outer_steps']}; bytes and waits below are means over the steps")
    if plan["joins"]:
        print("The rounds with the islands of islands.join are in the memory below, but not in the times.")
    for note in plan["notes"]:
        print(f"note: {note}")
    out.print(_memory(plan))
    out.print(_steps(plan))
    out.print(_layouts(plan))
    print(_fastest(plan))


def _memory(plan: dict[str, Any]) -> Table:
    memory, limit = plan["memory"], plan["memory_limit"]
    table = _table(f"Peak memory of a GPU, {MOMENTS[memory['moment']]}", "part", "GiB")
    for name, text in PARTS.items():
        table.add_row(text, f"{memory[name] / GIB:.2f}")
    fits = "fits" if memory["total"] <= limit else "DOES NOT FIT"
    table.add_row(f"all: {fits} into {limit / GIB:.1f}", f"{memory['total'] / GIB:.2f}", style="bold")
    return table


def _steps(plan: dict[str, Any]) -> Table:
    title = f"Seconds and bytes of a step in this layout by ratio, and {plan['tokens'] / 1e9:.4g} B tokens"
    sent = {"TP GiB": "tensor_bytes", "DP GiB": "data_bytes"}
    spent = {
        "compute": "compute_seconds",
        "TP wait": "tensor_exposed_seconds",
        "DP wait": "data_exposed_seconds",
    }
    if plan["outer_steps"]:
        sent["islands GiB"], spent["islands wait"] = "island_bytes", "island_exposed_seconds"
    spent["step s"] = "step_seconds"
    needed = [f"link for {100 * plan['waiting']:g}%"] if plan["outer_steps"] else []
    table = _table(title, "ratio", *sent, *spent, *needed, "tokens/s", "MFU", "days")
    for row in plan["steps"]:
        table.add_row(
            f"{row['ratio']:g}",
            *(_gib(row[name]) for name in sent.values()),
            *(f"{row[name]:.3g}" for name in spent.values()),
            *(_rate(row["island_link_needed_bits_per_second"]) for _ in needed),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['mfu']:.1%}",
            f"{row['days']:.3g}",
        )
    return table


def _rate(bits: float | None) -> str:
    """Return a rate in tc's notation. None: no rate is enough, because the delay alone is too long."""
    if bits is None:
        return "none"
    unit, name = next((each for each in ((1e12, "t"), (1e9, "g"), (1e6, "m")) if bits >= each[0]), (1e3, "k"))
    return f"{bits / unit:.3g}{name}bit"


def _gib(size: int) -> str:
    return f"{size / GIB:,.3g}" if size < GIB else f"{size / GIB:,.1f}"


def _layouts(plan: dict[str, Any]) -> Table:
    title = (
        "Largest micro-batch that fits with checkpointing none, selective and full; "
        "seconds per step and days of the fastest, by ratio"
    )
    columns = "processes", "replicas", "ZeRO", "none", "selective", "full"
    # A schedule's description is too long for a column.
    asked = plan["ratio"] if len(plan["ratio"]) < 6 else "asked"
    ratios = {"asked": asked} if _is_full(plan) else {"ratio_1": "1", "asked": asked}
    times = [text for ratio in ratios.values() for text in (f"{ratio}: s", "days")]
    table = _table(title, *columns, *times)
    for row in plan["layouts"]:
        words = {None: "-", 0: "no"}
        cells = [str(row[name]) for name in ("processes", "replicas", "stage")]
        cells += [words.get(row[mode], str(row[mode])) for mode in ("none", "selective", "full")]
        for best in (row[name] for name in ratios):
            cells += [f"{best['step_seconds']:.3g}", f"{best['days']:.3g}"] if best else ["-", "-"]
        table.add_row(*cells)
    return table


def _fastest(plan: dict[str, Any]) -> str:
    found = plan["fastest"]
    if found is None:
        return "No layout fits: give more nodes, or GPUs with more memory"
    one, asked = (_named(found[name]) for name in ("ratio_1", "asked"))
    if _is_full(plan):
        return f"Fastest: {one}"
    saved = found["saved"]
    change = f"{saved:.1%} less" if saved >= 0 else f"{-saved:.1%} more"
    return (
        f"Fastest at ratio 1: {one}\nFastest at ratio {plan['ratio']}: {asked}\n"
        f"The second takes {change} time than the first: this is the gain from the ratio on this machine"
    )


def _is_full(plan: dict[str, Any]) -> bool:
    """Return whether the plan is for full synchronisation, the baseline itself."""
    return (plan["ratio"], plan["wire_dtype"]) == ("1", "auto")


def _named(best: dict[str, Any]) -> str:
    several = "es" if best["processes"] > 1 else ""
    return (
        f"{best['processes']} process{several} a replica, ZeRO {best['stage']}, micro-batch "
        f"{best['micro_batch']}, checkpointing {best['checkpointing']}: {best['step_seconds']:.3g} s a step, "
        f"{best['days']:.3g} days"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 and column == "part" else "right")
    return table
