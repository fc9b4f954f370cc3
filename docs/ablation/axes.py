"""Trains the ablation's model with fewer bytes on every link at once: ratio, codec and islands.

    python docs/ablation/axes.py run prose/prose.jsonl outputs/axes   # resumable; an hour a seed on two cores
    python docs/ablation/axes.py figures outputs/axes                 # a table and docs/images/axes.png
    caat report outputs/axes                                          # all figures of the runs

Eight shards on two processes, twice: as two replicas that add up their gradients, or as two islands that
average their weights every 30 steps. The codec is that of the gradients, or of the changes of the weights.
axes.json keeps the figures of the runs that have ended, also those of other machines.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from figures import shown
from training import collect, loss_of, precision, run_command, train

from caat.runs.reading import find_runs
from caat.runs.variants import Sample
from launch.report.pictures import MIB, front

SEEDS = (1, 2, 3)
RATIOS, CODECS, ISLANDS = (1.0, 0.5), ("none", "int8"), (1, 2)
Point = tuple[float, str, int]
BASE: Point = (1.0, "none", 1)
POINTS: list[Point] = list(product(RATIOS, CODECS, ISLANDS))
STEPS = 1000
COMMON = (
    *("experiment=ablation", "train.compile=true", "train.eval_every=0"),
    *("launch.processes=4", "parallel.processes=2", "zero.stage=1", "train.micro_batch=4"),
)
RECORD = Path(__file__).with_suffix(".json")
IMAGE = Path(__file__).parents[1] / "images" / "axes.png"
# The figures of a run by name: its loss, and the bytes that the first process sends in a step.
Figures = dict[str, dict[str, float]]


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
        for point in POINTS:
            folder = out / name_of(point, seed)
            if loss_of(folder) is not None:
                continue
            where = [f"data.path={text}", f"run.dir={folder}", f"seed={seed}", f"train.steps={STEPS}"]
            train([*COMMON, f"train.precision={precision()}", *settings_of(point), *where, "resume=auto"])


def name_of(point: Point, seed: int) -> str:
    ratio, codec, islands = point
    return f"ratio-{ratio:g}-{codec}-islands-{islands}-seed-{seed}"


def _read(folder: Path) -> dict[str, float] | None:
    """Return the figures of the run in ``folder``; None if it has not ended."""
    if (loss := loss_of(folder)) is None:
        return None
    ((run,), _) = find_runs([str(folder)])
    total = run.total_bytes_per_step
    assert total is not None
    sent = {"replicas": run.data_bytes_per_step or 0, "islands": run.island_bytes_per_step or 0}
    return {"loss": loss, "shards": total - sum(sent.values()), **sent}


def sent(found: Figures, point: Point) -> list[float]:
    """Return the MiB that a process sends in a step to shards, to replicas and to islands."""
    each = next(found[name] for seed in SEEDS if (name := name_of(point, seed)) in found)
    return [each[link] / MIB for link in ("shards", "replicas", "islands")]


def cost(found: Figures, point: Point, seed: int) -> float | None:
    """Return the loss of a point minus that of the base."""
    one, base = (found.get(name_of(each, seed)) for each in (point, BASE))
    return one["loss"] - base["loss"] if one and base else None


def costs(found: Figures, point: Point) -> list[float]:
    """Return the :func:`cost` of each seed that has one."""
    return [value for seed in SEEDS if (value := cost(found, point, seed)) is not None]


def beyond(found: Figures, point: Point) -> list[float]:
    """Return by seed what a point costs beyond the sum of its axes, each changed alone."""
    alone: list[Point] = [
        (*BASE[:axis], value, *BASE[axis + 1 :])  # type: ignore[misc]
        for axis, value in enumerate(point)
        if value != BASE[axis]
    ]
    together = []
    for seed in SEEDS if len(alone) > 1 else ():
        whole, parts = cost(found, point, seed), [cost(found, each, seed) for each in alone]
        if whole is not None and None not in parts:
            together.append(whole - sum(part for part in parts if part is not None))
    return together


def table(found: Figures) -> str:
    """Return a Markdown table, most bytes first."""
    titles = "ratio | codec | islands | to shards | to replicas | to islands | all | minus the first row"
    lines = [f"| {titles} | beyond the sum of its axes |", "|---" * 9 + "|"]
    for point in sorted(_known(found), key=lambda point: -sum(sent(found, point))):
        links = sent(found, point)
        mib = (f"{value:.3g}" for value in (*links, sum(links)))
        differences = costs(found, point) if point != BASE else [], beyond(found, point)
        said = (shown(Sample(tuple(values))) if values else "" for values in differences)
        lines.append(f"| {' | '.join((f'{point[0]:g}', *map(str, point[1:]), *mib, *said))} |")
    return "\n".join(lines)


def _known(found: Figures) -> list[Point]:
    return [point for point in POINTS if costs(found, point)]


def figures(out: Path) -> None:
    """Print what each point sends and costs, and draw it."""
    found = collect(out, RECORD, [name_of(*each) for each in product(POINTS, SEEDS)], _read)
    print(table(found))
    _draw(found)
    print(IMAGE)


def _draw(found: Figures) -> None:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.2), layout="constrained")
    axes = drawing.subplots()
    points = {
        point: (sum(sent(found, point)), Sample(tuple(costs(found, point))).mean) for point in _known(found)
    }
    for islands, colour in zip(ISLANDS, ("#0072b2", "#d55e00"), strict=True):
        for codec, marker in zip(CODECS, "os", strict=True):
            some = [points[p] for p in points if p[1:] == (codec, islands)]
            label = f"{islands} island{'s' * (islands > 1)}, {codec.replace('none', 'no codec')}"
            axes.plot(*zip(*some, strict=True), marker, color=colour, label=label)
    for point, place in points.items():
        # The codec hardly moves a point.
        side = {"xytext": (6, 4), "ha": "left"} if point[1] == "none" else {"xytext": (-6, 4), "ha": "right"}
        axes.annotate(f"{point[0]:g}", place, textcoords="offset points", **side)
    axes.step(*zip(*front(list(points.values())), strict=True), where="post", color="#888888", lw=0.8, ls=":")
    axes.margins(x=0.1, y=0.15)
    axes.set_xlim(left=0)
    axes.set(
        xlabel="MiB that a process sends in a step, over all links (number: ratio)",
        ylabel="validation loss minus that of ratio 1,\none island, no codec (nats per token)",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    drawing.savefig(IMAGE, dpi=130)


if __name__ == "__main__":
    run_command(run, figures)
