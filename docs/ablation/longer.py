"""Trains the ablation's model for longer, and draws the difference to ratio 1 over the trained tokens.

    python docs/ablation/longer.py run prose/prose.jsonl outputs/longer   # resumable; hours on two cores
    python docs/ablation/longer.py figures outputs/longer                 # a table and docs/images/longer.png

Each variant and seed is a trunk at a constant learning rate. A branch leaves it at 0.8 of every length and
decays the learning rate to its end (wsd), so that one trunk serves all lengths. All variants reach a length
before the next one begins. In bfloat16 and compiled, a step takes 0.45 of its time in float32 on a CPU
with instructions for bfloat16; on one without, the runs are in float32.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import rmtree

from figures import shown
from training import AT_ONCE, loss_of, precision, run_command, side_by_side, train

from caat.runs.variants import Sample

# Steps of 2,048 tokens: 1, 2, 4, 8 and 14 M tokens.
LENGTHS = (488, 977, 1953, 3906, 6836)
DECAY = 0.2
VARIANTS = {
    "ratio 1": ((1, 2, 3), ["sync.ratio=1"]),
    "ratio 0.5": ((1, 2, 3), ["sync.ratio=0.5"]),
    "ratio 0.5, int8": ((1,), ["sync.ratio=0.5", "sync.wire_dtype=int8", "launch.processes=2"]),
    "ratio 0.25": ((1,), ["sync.ratio=0.25"]),
}
IMAGE = Path(__file__).parents[1] / "images" / "longer.png"


def run(text: str, out: Path) -> None:
    """Train what is missing in ``out``, shortest lengths first."""
    for length in LENGTHS:
        side_by_side(
            partial(_branch, _place(out, name, seed), length, [*settings, f"seed={seed}"], text)
            for name, (seeds, settings) in VARIANTS.items()
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


def _place(out: Path, variant: str, seed: int) -> Path:
    return out / f"{variant.replace(',', '').replace(' ', '-')}-seed-{seed}"


def _losses(out: Path, name: str, length: int, seeds: tuple[int, ...]) -> dict[int, float]:
    found = {seed: loss_of(_place(out, name, seed) / f"branch-{length}") for seed in seeds}
    return {seed: loss for seed, loss in found.items() if loss is not None}


def figures(out: Path) -> None:
    """Print the losses and the differences to ratio 1, seed by seed, and draw them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#888888", lw=1)
    for name, (seeds, _) in VARIANTS.items():
        points = []
        for length in LENGTHS:
            losses = _losses(out, name, length, seeds)
            base = _losses(out, "ratio 1", length, tuple(losses))
            if not base:
                continue
            delta = Sample(tuple(losses[seed] - base[seed] for seed in base))
            by_seed = ", ".join(
                f"{seed}: {losses[seed]:.4f} ({losses[seed] - base[seed]:+.4f})" for seed in base
            )
            print(f"{name:<16} {length * 2048 / 1e6:5.1f} M tokens  {by_seed}  mean {shown(delta)}")
            points.append((length * 2048 / 1e6, delta))
            axes.plot([points[-1][0]] * len(delta.values), delta.values, "_", color="#888888", ms=8)
        if points and name != "ratio 1":
            axes.plot([x for x, _ in points], [delta.mean for _, delta in points], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="trained tokens (millions)", ylabel="validation loss minus that of ratio 1\n(nats per token)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(IMAGE, dpi=130)
    print(IMAGE)


if __name__ == "__main__":
    run_command(run, figures)
