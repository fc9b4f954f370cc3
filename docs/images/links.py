"""Counts what a process sends over each link of a run, and draws links.png next to this file.

    python docs/images/links.py run outputs/links     # four runs of 60 steps; minutes on two cores
    python docs/images/links.py draw outputs/links

The model and text of the quick start on two sites: on each, a replica of two processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

STEPS, EVERY = 60, 30
INT8 = ("data_sync.codec=int8", "data_sync.weights_codec=int8")
ISLANDS = ("parallel.islands=2", "islands.method=average", f"islands.every={EVERY}", "islands.codec=int8")
# Each row adds settings to the one above.
ROWS = {
    "everything is sent": ("sync.ratio=1",),
    "half of the channels\nsync.ratio=0.5": ("sync.ratio=0.5",),
    "8 bits between the sites\ndata_sync.codec=int8\ndata_sync.weights_codec=int8": INT8,
    f"an exchange in {EVERY} steps\nparallel.islands=2 islands.every={EVERY}\n"
    "islands.method=average\nislands.codec=int8": ISLANDS,
}
# Title, and prefixes of the fields of metrics.jsonl.
LINKS = (
    ("within a site: activations", ("tensor_parallel_bytes_",)),
    ("between the sites: gradients and weights", ("data_parallel_bytes_", "islands_bytes_")),
)
MIB = 2**20


def run(out: Path) -> None:
    """Train the runs that ``out`` does not have yet."""
    settings: list[str] = []
    for number, more in enumerate(ROWS.values()):
        settings += more
        folder = out / str(number)
        if (folder / "summary.json").is_file():
            continue
        size = ["launch.processes=4", "parallel.processes=2", f"train.steps={STEPS}", "train.eval_every=0"]
        command = [sys.executable, "-m", "launch.pretrain", "experiment=quickstart", *size, *settings]
        subprocess.run([*command, "checkpoint.every=0", f"run.dir={folder}"], check=True)


def sent(folder: Path, prefixes: tuple[str, ...]) -> float:
    """Return the mean MiB that the first process of a run sent in a step, in fields with these prefixes."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return fmean(sum(step[name] for name in step if name.startswith(prefixes)) for step in steps) / MIB


def draw(out: Path) -> None:
    """Print the mebibytes of each link and row, and draw them."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(LINKS), sharey=True)
    for axes, (title, prefixes), colour in zip(panels, LINKS, ("#4477aa", "#bb5566"), strict=True):
        values = [sent(out / str(number), prefixes) for number in range(len(ROWS))]
        axes.barh(range(len(ROWS)), values, 0.6, color=colour)
        for place, (name, value) in enumerate(zip(ROWS, values, strict=True)):
            print(f"{title.partition(':')[0]:<18} {name.splitlines()[0]:<26} {value:8.3f} MiB")
            axes.text(value, place, f" {value:.3g}", va="center")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("MiB that a process sends in a step")
        axes.spines[["top", "right"]].set_visible(False)
    names = [name if place == 0 else f"+ {name}" for place, name in enumerate(ROWS)]
    panels[0].set_yticks(range(len(ROWS)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", folder]:
            run(Path(folder))
        case ["draw", folder]:
            draw(Path(folder))
        case _:
            sys.exit("usage: python docs/images/links.py run FOLDER, or draw FOLDER")
