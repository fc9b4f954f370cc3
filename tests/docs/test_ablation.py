"""docs/ablation: the page's figures are those of the runs, and its text can be had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from xxhash import xxh3_128

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.state import read_optimizer, read_state, write_state
from eval.open import load_model
from tests.launch.saved_run import ADAMW, AT_200
from tests.trained import MODEL, write_checkpoint

FOLDER = Path(__file__).parents[2] / "docs" / "ablation"


def test_the_page_says_what_the_runs_measured(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "ablation")
    (tmp_path / "images").mkdir()
    command = [sys.executable, str(tmp_path / "ablation" / "figures.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    # A row of the page with the name of a printed one is that row.
    names = {line.split("|")[1] for line in printed if line.startswith("| ") and not line.startswith("| |")}
    page = FOLDER.with_suffix(".md").read_text().splitlines()
    rows = [line for line in page if line.startswith("| ") and line.split("|")[1] in names]
    assert len(rows) > 20 and not set(rows) - set(printed)
    for name in ("ablation.png", "ablation-variants.png"):
        assert (tmp_path / "images" / name).stat().st_size > 10_000


def test_the_tables_of_longer_runs_and_of_all_axes_are_those_of_their_records():
    program = (
        "import json, axes, longer; losses = json.loads(longer.RECORD.read_text());"
        "tables = [longer.table(losses, size) for size in longer.SIZES.values()];"
        "print(json.dumps([*tables, axes.table(json.loads(axes.RECORD.read_text()))]))"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    tables, page = json.loads(printed), FOLDER.with_suffix(".md").read_text()
    assert len(tables) == 3
    for table in tables:
        assert table.count("\n") > 3 and table in page


def test_weights_that_write_private_channels_are_divided(tmp_path):
    checkpoint, out = write_checkpoint(tmp_path / "run", 4, 0.5), tmp_path / "scaled"
    files = {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()}
    write_state(checkpoint, AT_200, ADAMW, files)
    command = [sys.executable, "scaled_rows.py", str(checkpoint), str(out)]
    subprocess.run(command, cwd=FOLDER, check=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, out))
    shared = MODEL.hidden // 2
    for name, weight in before.items():
        expected = weight.clone()
        if "o_proj" in name or "down_proj" in name:
            expected[shared:] *= 0.5
        assert torch.equal(after[name], expected), name
    # A run can resume from it.
    state, checksums = read_state(out)
    assert state == AT_200 and read_optimizer(out) == ADAMW
    assert checksums == {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in out.iterdir()
                         if path.name in files}  # fmt: skip


def test_what_private_channels_give_to_the_logits(tmp_path, monkeypatch):
    """Without their columns of the head, the model gives the rest, divided by the same norm."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from private import shares

    checkpoint = write_checkpoint(tmp_path / "run", 4, 0.5, model=replace(MODEL, vocab_size=304))
    model, tokens = load_model(checkpoint, Mesh(4)), torch.arange(128).view(2, 64) % 300
    share = shares(model, tokens)[-1][-1]
    with torch.inference_mode():
        whole = model(tokens)
        model.head.weight[:, MODEL.hidden // 2 :] = 0
        private = whole - model(tokens)
    assert share == pytest.approx(float((private.var(-1) / whole.var(-1)).mean()), rel=1e-4)
    assert 0.1 < share < 0.9


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("apt-get"), reason="four of the sources are packages of Debian")
def test_prose(tmp_path):
    command = [sys.executable, str(FOLDER / "prose.py"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=600)
    train, held_out = (tmp_path / name for name in ("prose.jsonl", "prose-validation.jsonl"))
    rows, others = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (train, held_out)
    )
    assert len({row["source"] for row in rows}) == len({row["source"] for row in others}) == 9
    assert len(rows) > 20_000 and sum(len(row["text"]) for row in rows) > 45e6
    assert not {row["text"] for row in rows} & {row["text"] for row in others}
