"""Uptrains a model at ratio 0.5 on 200 k tokens in several ways, and draws the loss over the tokens.

    caat convert from=SmolLM2-135M to=ordered parallel.tensor=3 order=prose/prose-validation.jsonl
    python docs/uptraining/budget.py run ordered prose/prose.jsonl outputs/uptraining [setting=value ...]
    python docs/uptraining/budget.py figures outputs/uptraining    # a table and docs/images/uptraining.png

`run` is resumable and trains what is missing; a run takes minutes to an hour on two cores. budget.json keeps
the losses of the runs that have ended, also those of other machines: `figures` adds to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
RECORD, IMAGE = FOLDER / "budget.json", FOLDER.parent / "images" / "uptraining.png"
STEPS, EVERY, TOKENS = 195, 39, 1024
HALF, LOWERED = "sync.ratio=0.5", "sync.ratio={0:0.9,20:0.8,40:0.7,60:0.6,80:0.5}"
# By name: the weight of distillation, if any, and the settings.
WAYS = {
    "ratio 1": (None, ["sync.ratio=1"]),
    "at once": (None, [HALF]),
    "in steps": (None, [LOWERED]),
    "distilled": ("1", [HALF]),
    "in steps, distilled": ("1", [LOWERED]),
}
# Losses by step: before the first one, and at each validation.
Losses = dict[str, float]


def run(initial: str, text: str, out: Path, more: list[str]) -> None:
    """Train what is missing in ``out`` from the checkpoint ``initial``."""
    for way, (weight, settings) in WAYS.items():
        folder = _folder(out, way)
        if (folder / "summary.json").is_file():
            continue
        program = ["-m", "launch.pretrain"] if weight is None else [str(FOLDER / "distil.py"), weight]
        where = [f"initialize={initial}", f"data.path={text}", f"run.dir={folder}", "resume=auto"]
        length = [f"train.steps={STEPS}", f"train.eval_every={EVERY}", "train.eval_sequences=64"]
        given = ["experiment=uptrain", "parallel.tensor=3", *length, *settings, *where, *more]
        subprocess.run([sys.executable, *program, *given], check=True)


def figures(out: Path) -> None:
    """Print the losses as Markdown, and draw them."""
    from matplotlib.figure import Figure

    record: dict[str, Losses] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    record |= {
        way: _losses(_folder(out, way)) for way in WAYS if (_folder(out, way) / "summary.json").is_file()
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for way, losses in record.items():
        # The first losses at a lowered ratio are off the scale that shows the others.
        points = [(int(step) * TOKENS / 1e3, loss) for step, loss in losses.items() if int(step)]
        axes.plot(
            *zip(*points, strict=True), "o-", ms=4, label=way, color="#888888" if way == "ratio 1" else None
        )
    axes.set(xlabel="tokens (thousands)", ylabel="validation loss (nats per token)", ylim=(3, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(IMAGE, dpi=130)
    print(IMAGE)


def table(record: dict[str, Losses]) -> str:
    """Return a Markdown table: a row for each way, a column for each validation."""
    # A ratio that changes is validated on both sides of each change, too.
    steps = range(0, STEPS + 1, EVERY)
    titles = ["initial weights" if not step else f"{step * TOKENS / 1e3:.0f} k tokens" for step in steps]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(steps) + 1) + "|"]
    for way, losses in record.items():
        cells = [f"{losses[str(step)]:.3f}" if str(step) in losses else "" for step in steps]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _folder(out: Path, way: str) -> Path:
    return out / way.replace(",", "").replace(" ", "-")


def _losses(folder: Path) -> Losses:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before = {"0": records[0]["validation_loss_before"]}
    return before | {
        str(each["step"]): each["validation_loss"] for each in records if "validation_loss" in each
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", checkpoint, data, folder, *settings]:
            run(checkpoint, data, Path(folder), settings)
        case ["figures", folder]:
            figures(Path(folder))
        case _:
            sys.exit(f"usage: python {sys.argv[0]} run CHECKPOINT TEXT.jsonl FOLDER, or figures FOLDER")
