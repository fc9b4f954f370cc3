"""Trains the ablation's model for longer, and draws the difference to ratio 1 over the trained tokens.

    python docs/ablation/longer.py run prose/prose.jsonl outputs/longer   # resumable; hours on two cores
    python docs/ablation/longer.py figures outputs/longer                 # a table and docs/images/longer.png

longer.json keeps the losses of the runs that have ended, also those of other machines: `figures` adds to it.
A model of 20 M parameters, twice as wide and with a fifth block, trains for the shorter lengths.

Each variant and seed is a trunk at a constant learning rate. A branch leaves it at 0.8 of every length and
decays the learning rate to its end (wsd), so that one trunk serves all lengths. All variants reach a length
before the next one begins. In bfloat16 and compiled, a step takes 0.45 of its time in float32 on a CPU
with instructions for bfloat16; on one without, the runs are in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree

from figures import shown
from training import AT_ONCE, collect, loss_of, precision, run_command, side_by_side, train

from caat.runs.variants import Sample

TOKENS = 2048
# In steps: 1, 2, 4, 8 and 14 M tokens.
LENGTHS = (488, 977, 1953, 3906, 6836)
DECAY = 0.2
# The settings by name.
VARIANTS = {
    "ratio 1": ["sync.ratio=1"],
    "ratio 0.5": ["sync.ratio=0.5"],
    "ratio 0.5, int8": ["sync.ratio=0.5", "sync.wire_dtype=int8", "launch.processes=2"],
    "ratio 0.25": ["sync.ratio=0.25"],
}


@dataclass(frozen=True)
class Size:
    """A model, the lengths that it trains for, and the seeds of each variant."""

    lengths: tuple[int, ...]
    seeds: dict[str, tuple[int, ...]]
    settings: tuple[str, ...] = ()
    # Begins the name of the folder of each run.
    prefix: str = ""


SEEDS = (1, 2, 3)
SIZES = {
    "5.3 M parameters": Size(
        LENGTHS, {"ratio 1": SEEDS, "ratio 0.5": SEEDS, "ratio 0.5, int8": (1,), "ratio 0.25": (1,)}
    ),
    "20 M parameters": Size(
        LENGTHS[:3],
        {"ratio 1": (1,), "ratio 0.5": (1,)},
        ("model.hidden=512", "model.ffn=1408", "model.layers=5", "optim.lr=5e-4"),
        "wider-",
    ),
}
RECORD = Path(__file__).with_suffix(".json")
IMAGE = Path(__file__).parents[1] / "images" / "longer.png"


def run(text: str, out: Path) -> None:
    """Train what is missing in ``out``: the small model before the large one, shortest lengths first."""
    for size in SIZES.values():
        for length in size.lengths:
            side_by_side(
                partial(
                    _branch,
                    out / _trunk(size, name, seed),
                    length,
                    [*size.settings, *VARIANTS[name], f"seed={seed}"],
                    text,
                )
                for name, seeds in size.seeds.items()
                for seed in seeds
            )


def _branch(folder: Path, length: int, settings: list[str], text: str) -> None:
    trunk, branch, decay = folder / "trunk", folder / f"branch-{length}", round(DECAY * length)
    if loss_of(branch) is not None:
        return
    settings = [
        "experiment=ablation",
        f"train.precision={precision()}",
        "train.compile=true",
        f"data.path={text}",
        "train.eval_every=0",
        "checkpoint.every=500",
        *settings,
    ]
    start = length - decay
    last = trunk / "checkpoints" / f"step-{start:08}"
    if not last.is_dir():
        how = ["optim.schedule=constant", f"train.steps={start}", f"run.dir={trunk}", "resume=auto"]
        train([*settings, *how], AT_ONCE)
    how = ["optim.schedule=wsd", f"optim.decay_steps={decay}", f"train.steps={length}", f"run.dir={branch}"]
    resume = f"resume={last}"
    if any((branch / "checkpoints").glob("step-*")):
        resume = "resume=auto"
    elif branch.is_dir():
        # It was stopped before its first checkpoint.
        rmtree(branch)
    train([*settings, *how, resume], AT_ONCE)


def _trunk(size: Size, variant: str, seed: int) -> str:
    return f"{size.prefix}{variant.replace(',', '').replace(' ', '-')}-seed-{seed}"


def _ended(size: Size, variant: str, seed: int, length: int) -> str:
    return f"{_trunk(size, variant, seed)}/branch-{length}"


def _all_runs() -> Iterator[str]:
    for size in SIZES.values():
        for name, seeds in size.seeds.items():
            for seed in seeds:
                yield from (_ended(size, name, seed, length) for length in size.lengths)


def differences(losses: dict[str, float], size: Size, variant: str, length: int) -> dict[int, float]:
    """Return the loss of a variant minus that of ratio 1, by seed."""
    found = {}
    for seed in size.seeds[variant]:
        loss, base = (losses.get(_ended(size, name, seed, length)) for name in (variant, "ratio 1"))
        if loss is not None and base is not None:
            found[seed] = loss - base
    return found


def table(losses: dict[str, float], size: Size) -> str:
    """Return a Markdown table: the loss of ratio 1, and what the other variants add to it, by length."""
    others = [name for name in size.seeds if name != "ratio 1"]
    lines = [f"| tokens | ratio 1 | {' | '.join(f'{name} minus ratio 1' for name in others)} |"]
    lines.append("|---" * (2 + len(others)) + "|")
    for length in size.lengths:
        base = [losses.get(_ended(size, "ratio 1", seed, length)) for seed in size.seeds["ratio 1"]]
        known = [loss for loss in base if loss is not None]
        if not known:
            continue
        cells = [f"{length * TOKENS / 1e6:.0f} M", f"{Sample(tuple(known)).mean:.4f}"]
        for name in others:
            found = differences(losses, size, name, length)
            cells.append(f"{_shown(found)} ({_count(found)})" if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(found: dict[int, float]) -> str:
    return shown(Sample(tuple(found.values())))


def _count(found: dict[int, float]) -> str:
    return f"{len(found)} seed{'s' * (len(found) > 1)}"


def figures(out: Path) -> None:
    """Print the differences to ratio 1, and draw them: a line for each seed, a mark for their mean."""
    losses = collect(out, RECORD, _all_runs())
    for title, size in SIZES.items():
        print(f"{title}\n\n{table(losses, size)}\n")
    _draw(losses)
    print(IMAGE)


def _draw(losses: dict[str, float]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#888888", lw=1)
    colours = count()
    for title, size in SIZES.items():
        for name in size.seeds:
            by_length = {
                length * TOKENS / 1e6: differences(losses, size, name, length) for length in size.lengths
            }
            points = {x: Sample(tuple(found.values())) for x, found in by_length.items() if found}
            if name == "ratio 1" or not points:
                continue
            colour = f"C{next(colours)}"
            axes.plot([], [], "o-", color=colour, label=f"{name}, {title}")
            for seed in size.seeds[name]:
                own = {x: found[seed] for x, found in by_length.items() if seed in found}
                axes.plot([*own], [*own.values()], color=colour, lw=0.8, alpha=0.6)
            for x, sample in points.items():
                one = len(sample.values) == 1
                axes.plot(x, sample.mean, "o", color=colour, fillstyle="none" if one else "full")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := [round(length * TOKENS / 1e6) for length in LENGTHS], map(str, ticks))
    axes.set(
        xlabel="trained tokens (millions)", ylabel="validation loss minus that of ratio 1\n(nats per token)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(IMAGE, dpi=130)


if __name__ == "__main__":
    run_command(run, figures)
