"""A converted model fine-tuned on chats: its losses are those that transformers computes row by row."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from caat.data.corpus import prepared_folder
from caat.data.marks import BEGINS, COUNTS
from caat.data.order import Permutation, mix
from caat.data.shards import TokenShards, read_index
from conf.reading.saved import read_config
from launch.convert import main as convert
from tests.data.test_chats import BLOCKS
from tests.data.test_rows import write_rows
from tests.layers.huggingface.llamas import write_llama

SEQUENCE, BATCH, SEED = 32, 4, 7
SETTINGS = [
    "initialize=llama",
    "parallel.tensor=2",
    "data.path=rows.jsonl",
    "sync.ratio=1",
    "data.format=chat",
    "data.validation=0.1",
    "train.documents=masked",
    f"train.sequence={SEQUENCE}",
    f"train.global_batch={BATCH}",
    "train.micro_batch=1",
    "train.steps=2",
    "train.eval_sequences=6",
    "optim.warmup_steps=0",
    f"seed={SEED}",
    # Two replicas: each has other numbers of targets that count.
    "launch.processes=2",
    "parallel.processes=1",
    "run.dir=run",
]


def mean_loss(model, shards: TokenShards, sequences: list[int]) -> float:
    """The mean over the targets that count, of each document of the sequences alone."""
    losses = []
    for number in sequences:
        tokens = torch.from_numpy(shards.read(number * SEQUENCE, SEQUENCE + 1))
        marks = shards.marks(number * SEQUENCE, SEQUENCE + 1)
        starts = [0, *(at for at in range(1, SEQUENCE) if marks[at] & BEGINS), SEQUENCE]
        for first, last in pairwise(starts):
            with torch.no_grad():
                logits = model(tokens[None, first:last]).logits[0].double()
            each = F.cross_entropy(logits, tokens[first + 1 : last + 1], reduction="none")
            losses += [float(each[at]) for at in range(last - first) if marks[first + at + 1] & COUNTS]
    assert 0 < len(losses) < SEQUENCE * len(sequences)
    return sum(losses) / len(losses)


@pytest.mark.slow
def test_the_losses_of_a_run(tmp_path: Path):
    model = write_llama(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text(BLOCKS)
    convert([f"from={tmp_path / 'hf'}", f"to={tmp_path / 'llama'}", "parallel.tensor=2"])
    write_rows(tmp_path / "rows.jsonl", 120, "chat")
    command = [sys.executable, "-m", "launch.pretrain", *SETTINGS]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "training tokens (data.format=chat)" in result.stderr

    config = read_config(tmp_path / "run" / "config.yaml")
    config.data.path, config.data.dir = str(tmp_path / "rows.jsonl"), str(tmp_path / "data")
    config.data.tokenizer = str(tmp_path / config.data.tokenizer)
    folder = prepared_folder(config.data)
    train, held_out = TokenShards(folder, "train"), TokenShards(folder, "validation")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    marks, last = train.marks(0, len(train)), (len(train) - 1) // SEQUENCE * SEQUENCE
    rows_begin = [*(at for at, mark in enumerate(marks) if mark & BEGINS), len(train)]
    cut = sum(any(at % SEQUENCE == 0 for at in range(b + 1, min(e, last))) for b, e in pairwise(rows_begin))
    rows = read_index(folder).documents - sum(mark & BEGINS > 0 for mark in held_out.marks(0, len(held_out)))
    assert f"{cut} of {rows} rows are cut" in result.stderr
    order = Permutation((len(train) - 1) // SEQUENCE, mix(SEED, 0))
    batch = [order[number] for number in range(BATCH)]
    count = min(6, (len(held_out) - 1) // SEQUENCE)
    assert first["loss"] == pytest.approx(mean_loss(model, train, batch), abs=1e-5)
    assert first["validation_loss_before"] == pytest.approx(
        mean_loss(model, held_out, list(range(count))), abs=1e-5
    )
