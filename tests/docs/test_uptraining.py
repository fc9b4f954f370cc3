"""docs/uptraining: the page's figures are those of the runs, and distillation does what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.convert import main as convert
from tests.layers.huggingface.llamas import write_llama
from tests.trained import SENTENCES

FOLDER = Path(__file__).parents[2] / "docs" / "uptraining"


def test_the_tables_are_those_of_their_record():
    program = (
        "import json, budget; record = json.loads(budget.RECORD.read_text());"
        "lengths = {budget.WAYS[way].steps for way in record};"
        "print(json.dumps([budget.table(record, steps) for steps in sorted(lengths)]))"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    tables, page = json.loads(printed), FOLDER.with_suffix(".md").read_text()
    assert tables and tables[0].count("\n") > 3
    for table in tables:
        assert table in page


def test_figures_show_runs_that_have_not_ended(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "uptraining")
    (tmp_path / "images").mkdir()
    (tmp_path / "uptraining" / "budget.json").unlink()
    run = tmp_path / "out" / "in-steps"
    run.mkdir(parents=True)
    lines = [{"step": 1, "validation_loss_before": 4.0}, {"step": 39, "validation_loss": 3.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(tmp_path / "uptraining" / "budget.py"), "figures", str(tmp_path / "out")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| in steps | 4.000 (0.9) | 3.500 (0.8) |  |  |  |  |" in printed.splitlines()
    assert (tmp_path / "images" / "uptraining.png").stat().st_size > 10_000


@pytest.mark.slow
def test_distillation_mixes_the_usual_loss_with_the_divergence(tmp_path):
    """A model differs in nothing from itself; without a teacher, the loss is that of `caat pretrain`."""
    checkpoint, text = tmp_path / "teacher", tmp_path / "text.txt"
    write_llama(tmp_path / "hf")
    convert([f"from={tmp_path / 'hf'}", f"to={checkpoint}", "parallel.tensor=4"])
    text.write_text("\n\n".join(SENTENCES))

    def loss(*program: str, ratio: float) -> float:
        folder = tmp_path / f"{'-'.join(Path(part).name for part in program)}-{ratio}"
        given = [f"initialize={checkpoint}", f"data.path={text}", f"data.dir={tmp_path / 'data'}"]
        given += ["parallel.tensor=4", f"sync.ratio={ratio}", f"run.dir={folder}", "train.steps=1"]
        given += ["train.sequence=32", "train.micro_batch=2", "train.global_batch=2", "data.validation=0.2"]
        subprocess.run([sys.executable, *program, *given], check=True, cwd=tmp_path)
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    distil = str(FOLDER / "distil.py")
    assert loss(distil, "1", "1", ratio=1.0) == pytest.approx(0, abs=1e-6)
    usual, divergence = loss("-m", "launch.pretrain", ratio=0.5), loss(distil, "1", "0", ratio=0.5)
    assert divergence > 1e-3
    both = loss(distil, "0.25", "0", ratio=0.5)
    assert both == pytest.approx(0.75 * usual + 0.25 * divergence, rel=1e-5)
    streams = loss(distil, "0.25", "2", ratio=0.5) - both
    assert streams > 1e-3
    assert loss(distil, "0.25", "4", ratio=0.5) == pytest.approx(both + 2 * streams, rel=1e-5)
