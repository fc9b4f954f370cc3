"""Short real runs from the command line, end to end: every entry point, every shipped model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.paragraphs import PARAGRAPHS
from tests.wandb_file import wandb_history, wandb_records

pytestmark = pytest.mark.slow

SHORT = [
    "model=tiny",
    "model.layers=2",
    "parallel.tensor=4",
    "train.steps=4",
    "train.sequence=64",
    "train.eval_every=2",
    "train.eval_sequences=8",
    "optim.warmup_steps=2",
    "data.vocab_size=400",
    "data.validation=0.1",
]
# Each new checkpoint is copied to another folder.
AFTER = "checkpoint.after=[cp,-r,%p,store/%n]"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n\n".join(PARAGRAPHS))
    return path


def command(*arguments: str, cwd: Path, status: int = 0, timeout: int = 300) -> str:
    """Run ``python arguments`` and return what it printed, both streams."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
    printed = result.stdout + result.stderr
    assert result.returncode == status, printed
    return printed


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "launch.pretrain")


def test_a_mixture_resumes_bit_for_bit_with_the_loss_of_each_source(text, tmp_path):
    from caat.data.shards import TokenShards
    from caat.training.checkpoint.folder import find
    from eval.open import open_model

    stories = [{"text": " ".join(reversed(paragraph.split()))} for paragraph in PARAGRAPHS]
    (tmp_path / "stories.jsonl").write_text("\n".join(map(json.dumps, stories)))
    mixture = "data.mixture={own:0.7,stories:0.3}"
    sources = f"data.sources={{own:{text},stories:stories.jsonl}}"
    settings = [*SHORT, mixture, sources, "train.precision=fp32", "checkpoint.every=2", "data.test=0.2"]
    printed = command("-m", "launch.pretrain", *settings, "run.dir=whole", cwd=tmp_path)
    assert "mixture: 0.7 own (" in printed and "  of stories" in printed
    # On two replicas, the same sequences in each step.
    half = ["launch.processes=2", "parallel.processes=1", "train.micro_batch=2"]
    command("-m", "launch.pretrain", *settings, *half, "run.dir=halves", cwd=tmp_path)
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    middle = "resume=whole/checkpoints/step-00000002"
    command("-m", "launch.pretrain", *settings, middle, "run.dir=resumed", cwd=tmp_path)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[2:]
    other = [*settings, "data.mixture={own:0.6,stories:0.4}", middle, "run.dir=other"]
    said = command("-m", "launch.pretrain", *other, cwd=tmp_path, status=2)
    assert "different text, mixture or tokenizer" in said

    last = records(tmp_path / "whole")[-1]
    model, found = open_model(find(str(tmp_path / "whole"), "checkpoint"), "cpu", "fp32"), {}
    for name in ("own", "stories"):
        (folder,) = (tmp_path / "data").glob(f"{name}-*")
        for split, most in (("validation", 8), ("test", 10_000)):
            shards = TokenShards(folder, split)
            count = min(most, (len(shards) - 1) // 64)
            rows = torch.stack([torch.from_numpy(shards.read(64 * i, 65)) for i in range(count)])
            with torch.no_grad():
                found[split, name] = float(model(rows[:, :-1], rows[:, 1:]).double().mean())
            assert last[f"{split}_loss/{name}"] == pytest.approx(found[split, name], abs=1e-5)
    for split in ("validation", "test"):
        expected = 0.7 * found[split, "own"] + 0.3 * found[split, "stories"]
        assert last[f"{split}_loss"] == pytest.approx(expected, abs=1e-5)
    assert not any("test_loss" in record for record in records(tmp_path / "whole")[:-1])


def test_a_run_that_is_killed_in_its_test_split_is_saved(text, tmp_path):
    program = """
import os, sys
from caat.training.held_out import HeldOutText
from launch.pretrain import main
losses = HeldOutText.losses
HeldOutText.losses = lambda self, engine, name, *more: os._exit(9) if name == "test_loss" else losses(
    self, engine, name, *more
)
main(sys.argv[1:])
"""
    settings = [*SHORT, f"data.path={text}", "data.test=0.2", "run.dir=run"]
    command("-c", program, *settings, cwd=tmp_path, status=9)
    assert "nothing to do" in command("-m", "launch.pretrain", *settings, "resume=auto", cwd=tmp_path)


def test_three_ways_in_train_the_same_model(text, tmp_path):
    settings = [*SHORT, f"data.path={text}", "sync.ratio=0.5"]
    command("-m", "launch.cli", "pretrain", *settings, "run.dir=cli", "launch.processes=2", cwd=tmp_path)
    command(*TORCHRUN, *settings, "run.dir=torchrun", cwd=tmp_path)
    printed = command("-X", "importtime", "-m", "launch.pretrain", *settings, "run.dir=one", cwd=tmp_path)
    # torch's compiler, which nothing uses here, would add seconds to the start of every process.
    imported = {line.rsplit("|", 1)[-1].strip() for line in printed.splitlines() if "import time:" in line}
    assert "deepspeed" in imported
    assert imported.isdisjoint({"torch._dynamo", "torch._inductor.compile_fx", "sympy", "setuptools"})
    assert losses(tmp_path / "cli") == losses(tmp_path / "torchrun")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "cli"), abs=2e-5)
    for run in ("cli", "torchrun", "one"):
        folder = tmp_path / run
        for name in ("config.yaml", "environment.json", "log.txt", "summary.json", "loss.png"):
            assert (folder / name).stat().st_size > 0, name
        last = records(folder)[-1]
        assert last["validation_loss"] > 0
    assert records(tmp_path / "one")[-1]["tensor_parallel_bytes_forward"] == 0
    assert records(tmp_path / "cli")[-1]["tensor_parallel_bytes_forward"] > 0

    tokens = np.arange(33) % 300
    np.save(tmp_path / "tokens.npy", tokens)
    scores = []
    for processes in (1, 2, 4):
        out = f"scores{processes}"
        printed = command(
            "-m",
            "launch.cli",
            "score",
            "checkpoint=cli",
            "tokens=tokens.npy",
            f"out={out}",
            f"launch.processes={processes}",
            cwd=tmp_path,
        )
        assert printed.strip().endswith(f"{out}.json")
        scores.append(np.load(tmp_path / f"{out}.npy"))
        assert scores[-1].shape == (32,)
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[2], scores[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        [
            "zero.stage=3",
            "train.precision=bf16",
            "train.activation_checkpointing=full",
            "train.profile={2:3}",
        ],
        ["zero.stage=0", "train.precision=bf16", "train.activation_checkpointing=selective"],
        ["zero.stage=2", "train.deterministic=true", "optim.schedule=wsd", "checkpoint.every=2", AFTER],
    ],
)
def test_training_options(text, tmp_path, settings):
    # The global batch is the same on any layout: gradient accumulation adapts.
    settings = [*SHORT, f"data.path={text}", *settings, "parallel.processes=1", "launch.processes=2"]
    (tmp_path / "store").mkdir()
    printed = command("-m", "launch.pretrain", *settings, "run.dir=run", cwd=tmp_path)
    assert len(losses(tmp_path / "run")) == 4
    if "zero.stage=0" in settings:
        assert "zero.stage=0 runs as stage 1" in printed
    if "train.profile={2:3}" in settings:
        assert "profiled steps 2 to 3: " in printed
        assert "aten::mm" in (tmp_path / "run/profile/steps-2-3.txt").read_text()
    if "checkpoint.every=2" in settings:
        saved = sorted(p.name for p in (tmp_path / "run/checkpoints").glob("step-*"))
        assert saved == ["step-00000002", "step-00000004"]
        assert sorted(p.name for p in (tmp_path / "store").iterdir()) == saved


@pytest.mark.parametrize("model", ["tiny", "130m", "1.1b", "7b"])
def test_every_model_takes_a_step(model, text, tmp_path):
    # The FFN has two thirds of the weights of a 7b layer. A small one saves most of the time.
    settings = [f"model={model}", "model.layers=1", "model.ffn=512", "model.vocab_size=400"]
    settings += [f"data.path={text}"]
    settings += ["data.validation=0.1", "train.steps=1", "train.sequence=32", "train.micro_batch=1"]
    settings += ["train.global_batch=1", "train.eval_sequences=1", "optim.warmup_steps=0"]
    command("-m", "launch.pretrain", *settings, "run.dir=run", cwd=tmp_path)
    assert len(losses(tmp_path / "run")) == 1


def test_two_trackers_keep_the_run(text, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = ["tracker=[wandb_offline,tensorboard]", "tracker.tags=[test]", "tracker.artifacts=true"]
    settings = [*SHORT, f"data.path={text}", *trackers, "run.dir=run", "zero.stage=3", "launch.processes=2"]
    command("-m", "launch.pretrain", *settings, cwd=tmp_path)
    files = list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    history = wandb_history(files[0])
    logged = [row for row in history if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert [row["loss"] for row in logged] == pytest.approx(losses(tmp_path / "run"))
    assert "validation_loss" in logged[-1] and logged[-1]["validation_samples.nrows"] == 4
    kept = {r.request.log_artifact.artifact.type for r in wandb_records(files[0]) if r.HasField("request")}
    kept |= {r.artifact.type for r in wandb_records(files[0]) if r.HasField("artifact")}
    assert {"checkpoint", "report"} <= kept
    assert "<svg" in (tmp_path / "run" / "report" / "report.html").read_text()
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_own_rows(kind, tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"story": PARAGRAPHS})
    path = tmp_path / f"own.{kind}"
    rows.to_json(path) if kind == "jsonl" else rows.to_parquet(path)
    settings = [*SHORT, f"data.path={path}", "data.text_field=story", "run.dir=run"]
    command("-m", "launch.pretrain", *settings, cwd=tmp_path)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def test_a_diverging_run_stops_with_one_message(text, tmp_path):
    settings = [*SHORT, f"data.path={text}", "optim.lr=1e30", "optim.min_lr=0", "optim.clip=0"]
    settings += ["optim.warmup_steps=0", "train.steps=50", "train.max_skipped=3", "launch.processes=2"]
    printed = command("-m", "launch.pretrain", *settings, "run.dir=run", cwd=tmp_path, status=3)
    assert printed.count("3 steps in a row") == 1 and "Lower optim.lr" in printed
    assert "Traceback" not in printed
    assert records(tmp_path / "run")[-1]["skipped_steps"] == 3


def test_the_quick_start_experiment(text, tmp_path):
    settings = ["experiment=quickstart", "train.steps=2", "optim.warmup_steps=0", "train.eval_sequences=4"]
    settings += [f"data.path={text}", "data.vocab_size=400", "data.validation=0.2", "run.dir=run"]
    printed = command("-m", "launch.pretrain", *settings, cwd=tmp_path)
    assert "4 shards on 2 processes" in printed and "of full synchronisation" in printed
    assert "run/summary.json" in printed.splitlines()


def test_a_sweep_trains_every_ratio(text, tmp_path):
    settings = [*SHORT, f"data.path={text}", "sync.ratio=1,0", "hydra.sweep.dir=sweep"]
    command("-m", "launch.cli", "pretrain", "-m", *settings, cwd=tmp_path)
    runs = sorted(tmp_path.glob("sweep/*/summary.json"))
    assert [run.parent.name for run in runs] == ["sync.ratio-0", "sync.ratio-1"]
    assert len({json.loads(run.read_text())["validation_loss"] for run in runs}) == 2


@pytest.mark.parametrize(
    ("experiment", "grid", "runs"),
    [
        ("ablation", ["sync.ratio=1,0"], 2),
        ("ablation_130m", ["sync.ratio=1,0.5"], 2),
        ("ablation_shards", ["parallel.tensor=2,16"], 2),
        ("codecs", ["data_sync.codec=none,topk:0.1,index=bitmap", "train.global_batch=2"], 2),
    ],
)
def test_the_ablations_in_a_short_form(text, tmp_path, experiment, grid, runs):
    settings = [f"experiment={experiment}", "seed=1", "hydra.sweep.dir=sweep", f"data.path={text}"]
    settings += ["data.validation=0.1", "model.vocab_size=400", "model.layers=1", "train.steps=1"]
    settings += ["train.sequence=32", "train.micro_batch=1", "train.global_batch=1", "train.eval_sequences=1"]
    settings += ["optim.warmup_steps=0", "data.subset=null", *grid]
    command("-m", "launch.cli", "pretrain", "-m", *settings, cwd=tmp_path)
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/summary.json")]
    assert len(summaries) == runs and all(summary["validation_loss"] > 0 for summary in summaries)


def test_tokenize_then_train_on_the_folder(text, tmp_path):
    settings = [f"data.path={text}", "data.vocab_size=400", "data.validation=0.1", "out=tokens"]
    printed = command("-m", "launch.cli", "tokenize", *settings, cwd=tmp_path)
    assert "tokens" in printed.splitlines()
    command("-m", "launch.pretrain", *SHORT, "data.path=tokens", "run.dir=run", cwd=tmp_path)
    assert len(losses(tmp_path / "run")) == 4


def test_benchmarks_run(tmp_path):
    small = ["hidden=64", "ffn=128", "layers=1", "sequence=32", "vocab_size=256", "rounds=2"]
    command("-m", "launch.cli", "bench", "shards", *small, "out=shards.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "shards.json").read_text())["rows"]
    assert rows[0]["variant"] == "plain nn.Linear" and len(rows) == 4
    assert all(row["step_ms"] > 0 for row in rows)
    command("-m", "launch.cli", "bench", "tokenize", "copies=1", "rounds=1", "out=t.json", cwd=tmp_path)
    assert len(json.loads((tmp_path / "t.json").read_text())["rows"]) == 3
