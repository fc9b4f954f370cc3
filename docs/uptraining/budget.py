"""Uptrains a model at ratio 0.5 on 200 k tokens in several ways, and draws the loss over the tokens.

    caat convert from=SmolLM2-135M to=ordered parallel.tensor=3 order=prose/prose-validation.jsonl
    python docs/uptraining/budget.py run ordered prose/prose.jsonl outputs/uptraining [setting=value ...]
    python docs/uptraining/budget.py figures outputs/uptraining    # tables and docs/images/uptraining.png

`run` is resumable and trains what is missing; a run takes minutes to an hour on two cores. budget.json keeps
the losses of all runs so far, also those of other machines: `figures` adds to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
RECORD, IMAGE = FOLDER / "budget.json", FOLDER.parent / "images" / "uptraining.png"
STEPS, TOKENS = 195, 1024
FULL, HALF, LOWERED = {0: 1.0}, {0: 0.5}, {0: 0.9, 20: 0.8, 40: 0.7, 60: 0.6, 80: 0.5}


class Way(NamedTuple):
    """How to uptrain."""

    # The ratio from each step on.
    ratios: dict[int, float]
    # The weights of distil.py; none: the usual loss.
    distil: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    steps: int = STEPS

    @property
    def every(self) -> int:
        """The steps from one validation to the next."""
        return self.steps // 5


WAYS = {
    "ratio 1": Way(FULL),
    "at once": Way(HALF),
    "in steps": Way(LOWERED),
    "distilled": Way(HALF, ("1", "0")),
    "in steps, distilled": Way(LOWERED, ("1", "0")),
    "at once, private scale sqrt": Way(HALF, settings=("sync.private_scale=sqrt",)),
    "at once, lr 1e-3": Way(HALF, settings=("optim.lr=1e-3", "optim.min_lr=1e-4")),
    "streams distilled": Way(HALF, ("1", "10")),
    "at once, twice as long": Way(HALF, steps=2 * STEPS),
}
# Losses by step: before the first one, and at each validation.
Losses = dict[str, float]


def run(initial: str, text: str, out: Path, more: list[str]) -> None:
    """Train what is missing in ``out`` from the checkpoint ``initial``."""
    for name, way in WAYS.items():
        folder = _folder(out, name)
        if (folder / "summary.json").is_file():
            continue
        program = [str(FOLDER / "distil.py"), *way.distil] if way.distil else ["-m", "launch.pretrain"]
        where = [f"initialize={initial}", f"data.path={text}", f"run.dir={folder}", "resume=auto"]
        length = [f"train.steps={way.steps}", f"train.eval_every={way.every}", "train.eval_sequences=64"]
        ratio = f"sync.ratio={str(way.ratios).replace(' ', '')}"
        given = ["experiment=uptrain", "parallel.tensor=3", ratio, *length, *where, *way.settings, *more]
        subprocess.run([sys.executable, *program, *given], check=True)


def figures(out: Path) -> None:
    """Print the losses as Markdown, and draw them."""
    record: dict[str, Losses] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    # In the order of WAYS, without those of which nothing is known.
    found = ((way, record.get(way, {}) | _losses(_folder(out, way))) for way in WAYS)
    record = {way: losses for way, losses in found if losses}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    for steps in sorted({WAYS[way].steps for way in record}):
        print(f"{table(record, steps)}\n")
    _draw(record)
    print(IMAGE)


def _draw(record: dict[str, Losses]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    if "ratio 1" in record:
        initial = record["ratio 1"]["0"]
        axes.axhline(initial, color="#888888", ls=":", label=f"initial weights, ratio 1: {initial:.3f}")
    for way, losses in record.items():
        # The first losses at a lowered ratio are off the scale that shows the others.
        points = {int(step): loss for step, loss in losses.items() if int(step)}
        if not points:
            continue
        last = max(WAYS[way].ratios)
        label = f"{way}, ratio {ratio_of(way, STEPS):g} from {last * TOKENS / 1e3:.0f} k on" if last else way
        axes.plot([step * TOKENS / 1e3 for step in points], [*points.values()], "o-", ms=4, label=label)
    axes.set(xlabel="tokens (thousands)", ylabel="validation loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    figure.savefig(IMAGE, dpi=130)


def table(record: dict[str, Losses], steps: int) -> str:
    """Return a Markdown table of the ways with ``steps``: a row for each, a column for each validation.

    Ratios other than the last one are in brackets.
    """
    ways = [way for way in record if WAYS[way].steps == steps]
    # A ratio that changes is validated on both sides of each change, too.
    at = range(0, steps + 1, WAYS[ways[0]].every)
    titles = ["initial weights" if not step else f"{step * TOKENS / 1e3:.0f} k tokens" for step in at]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(at) + 1) + "|"]
    for way in ways:
        cells = []
        for step in at:
            loss, ratio = record[way].get(str(step)), ratio_of(way, step)
            other = "" if ratio == ratio_of(way, steps) else f" ({ratio:g})"
            cells.append("" if loss is None else f"{loss:.3f}{other}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_of(way: str, step: int) -> float:
    """Return the ratio at which the loss after ``step`` is taken: that of the step."""
    ratios = WAYS[way].ratios
    return ratios[max(first for first in ratios if first < max(step, 1))]


def _folder(out: Path, way: str) -> Path:
    return out / way.replace(",", "").replace(" ", "-")


def _losses(folder: Path) -> Losses:
    metrics = folder / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    losses = {str(each["step"]): each["validation_loss"] for each in records if "validation_loss" in each}
    return {"0": records[0]["validation_loss_before"], **losses} if records else {}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", checkpoint, data, folder, *settings]:
            run(checkpoint, data, Path(folder), settings)
        case ["figures", folder]:
            figures(Path(folder))
        case _:
            sys.exit(f"usage: python {sys.argv[0]} run CHECKPOINT TEXT.jsonl FOLDER, or figures FOLDER")
