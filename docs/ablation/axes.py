"""Trains the ablation's model with fewer bytes on every link at once: ratio, codec and islands.

    python docs/ablation/axes.py run prose/prose.jsonl outputs/axes   # resumable; hours on two cores
    python docs/ablation/axes.py figures outputs/axes                 # are the costs additive?
    caat report outputs/axes                                          # the loss against all bytes

Eight shards on two processes, twice: as two replicas that add up their gradients, or as two islands that
average their weights every 30 steps. The codec is that of the gradients, or of the changes of the weights.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from figures import shown
from training import loss_of, precision, run_command, train

from caat.runs.variants import Sample

SEEDS = (1, 2, 3)
RATIOS, CODECS, ISLANDS = (1.0, 0.5), ("none", "int8"), (1, 2)
Point = tuple[float, str, int]
BASE: Point = (1.0, "none", 1)
STEPS = 2000
COMMON = (
    *("experiment=ablation", "train.compile=true", "train.eval_every=0"),
    *("launch.processes=4", "parallel.processes=2", "zero.stage=1", "train.micro_batch=4"),
)


def settings_of(point: Point) -> list[str]:
    """Return the settings in which the runs differ."""
    ratio, codec, islands = point
    if islands == 1:
        return [f"sync.ratio={ratio}", f"data_sync.codec={codec}"]
    how = ["islands.method=average", "islands.every=30", f"islands.codec={codec}"]
    return [f"sync.ratio={ratio}", f"parallel.islands={islands}", *how]


def run(text: str, out: Path) -> None:
    """Train what is missing in ``out``, all points of a seed first."""
    for seed in SEEDS:
        for point in product(RATIOS, CODECS, ISLANDS):
            folder = place(out, point, seed)
            if loss_of(folder) is not None:
                continue
            where = [f"data.path={text}", f"run.dir={folder}", f"seed={seed}", f"train.steps={STEPS}"]
            train([*COMMON, f"train.precision={precision()}", *settings_of(point), *where, "resume=auto"])


def place(out: Path, point: Point, seed: int) -> Path:
    ratio, codec, islands = point
    return out / f"ratio-{ratio:g}-{codec}-islands-{islands}-seed-{seed}"


def figures(out: Path) -> None:
    """Print the loss of each point minus that of the base, and minus the sum of the costs of its axes."""
    losses = {}
    for point in product(RATIOS, CODECS, ISLANDS):
        found = {seed: loss_of(place(out, point, seed)) for seed in SEEDS}
        losses[point] = {seed: loss for seed, loss in found.items() if loss is not None}
    for point, by_seed in losses.items():
        # The same point with only one of its axes at a time.
        single = [
            (*BASE[:axis], value, *BASE[axis + 1 :])
            for axis, value in enumerate(point)
            if value != BASE[axis]
        ]
        costs, beyond = [], []
        for seed, loss in by_seed.items():
            if seed not in losses[BASE]:
                continue
            costs.append(loss - losses[BASE][seed])
            if all(seed in losses[each] for each in single):
                alone = sum(losses[each][seed] - losses[BASE][seed] for each in single)
                beyond.append(costs[-1] - alone)
        name = f"ratio {point[0]:g}, {point[1]}, {point[2]} island{'s' * (point[2] > 1)}"
        more = (
            f"  beyond the sum of its axes {shown(Sample(tuple(beyond)))}"
            if len(single) > 1 and beyond
            else ""
        )
        print(f"{name:<28} {shown(Sample(tuple(costs))) if costs else '-'}{more}")


if __name__ == "__main__":
    run_command(run, figures)
