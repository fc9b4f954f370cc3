"""Benchmarks inside training: right at every ZeRO stage, and training does not notice."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install lm-eval")

from caat.data.tokenizer import load_tokenizer
from caat.parallel.mesh import Mesh
from caat.training.engine import Engine
from conf.optim import OptimConfig
from eval.open import load_model
from eval.quality.evaluate import evaluate, flat
from eval.quality.in_training import run_benchmarks
from eval.quality.lm_eval_model import CaatLM
from eval.quality.tasks import find_tasks
from tests.eval.tasks import write_tasks
from tests.trained import MODEL, write_checkpoint

SHARDS, RATIO = 4, 0.5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), SHARDS, RATIO)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


class CutEngine(Engine):
    """At stage 3 DeepSpeed leaves small weights whole; here it cuts all of them."""

    def _settings(self, *arguments) -> dict:
        settings = super()._settings(*arguments)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings


def train(checkpoint, tasks, processes: int, stage: int, evaluating: bool):
    """Losses of three steps, and the figures of the model before and after the first."""
    mesh = Mesh.create(SHARDS, processes)
    model = load_model(checkpoint, mesh).train()
    engine = CutEngine(model, mesh, OptimConfig(lr=1e-2), stage=stage, precision="fp32", accumulation=1)
    tokenizer, losses, figures, beats = load_tokenizer(checkpoint / "tokenizer.model"), [], [], []
    for step in range(3):
        if evaluating and step < 2:
            found = find_tasks([str(tasks)])
            figures.append(
                run_benchmarks(
                    engine, model, tokenizer, found, 4, watch=lambda *progress: beats.append(progress)
                )
            )
            assert model.training and beats
        generator = torch.Generator().manual_seed(10 * step + mesh.data_rank)
        text = torch.randint(MODEL.vocab_size, (2, 17), generator=generator)
        losses.append(engine.step([(text[:, :-1], text[:, 1:])], 1e-2).loss)
    return losses, figures


def whole(checkpoint, tasks) -> dict[str, float]:
    tokenizer = load_tokenizer(checkpoint / "tokenizer.model")
    lm = CaatLM(load_model(checkpoint, Mesh(SHARDS)), tokenizer)
    return flat(evaluate(lm, find_tasks([str(tasks)]), 4))


SLOW = [pytest.param(stage, 4, marks=pytest.mark.slow) for stage in (0, 1, 2, 3)]


@pytest.mark.parametrize(("stage", "world"), [(3, 2), *SLOW])
def test_figures_are_right_and_training_goes_on_as_without(ranks, checkpoint, tasks, stage, world):
    """In two replicas."""
    expected = whole(checkpoint, tasks)
    with_it = ranks(world).run(train, checkpoint, tasks, world // 2, stage, True)
    without = ranks(world).run(train, checkpoint, tasks, world // 2, stage, False)
    assert [losses for losses, _ in with_it] == [losses for losses, _ in without]
    before, after = with_it[0][1]
    assert before == pytest.approx(expected, rel=1e-4)
    assert after.keys() == before.keys() and after != before
