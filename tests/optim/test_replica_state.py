"""State that each replica keeps for itself is saved and resumed like the state that ZeRO cuts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from caat.optim.adamw import AdamW
from caat.optim.kinds import StateKind, saved_numbers
from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.reading import load_master_weights, load_optimizer, load_weights
from caat.training.checkpoint.saver import Saver
from caat.training.engine import Engine
from conf.optim import OptimConfig
from conf.schema import CheckpointConfig
from layers.full_tensors import full_tensors
from tests.models import SMALL, batch, build, gathered
from tests.training.test_checkpoint import state, verify

NARROW = replace(SMALL, hidden=32, heads=4, kv_heads=2)
SHARDS, SAVED_AT, STEPS = 2, 3, 5
LEVELS = 3


class FeedbackAdamW(AdamW):
    """AdamW of gradients that each replica rounds to a few levels, with error feedback (arXiv 1901.09847).

    ``feedback`` is what rounding took from the gradients so far, by parameter; ``scale`` a running mean of
    their largest magnitude, one number a parameter.
    """

    name = "feedback-adamw"
    kinds = (
        *AdamW.kinds,
        StateKind("feedback", shared=False),
        StateKind("scale", shared=False, shaped=False),
    )

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        super().__init__(model, optim)
        named = list(model.named_parameters())
        self._kept = {
            "feedback": {name: torch.zeros(p.numel()) for name, p in named},
            "scale": {"largest": torch.zeros(len(named))},
        }
        for number, (name, parameter) in enumerate(named):
            parameter.register_hook(partial(self._round, number, name))

    def replica_state(self, kind: str) -> dict[str, Tensor]:
        return self._kept[kind]

    @torch.no_grad()
    def _round(self, number: int, name: str, gradient: Tensor) -> Tensor:
        feedback, scale = self._kept["feedback"][name], self._kept["scale"]["largest"][number]
        wanted = gradient.flatten().float() + feedback
        scale.mul_(0.5).add_(wanted.abs().max(), alpha=0.5)
        sent = (wanted / scale * LEVELS).round() * scale / LEVELS
        feedback.copy_(wanted - sent)
        return sent.view_as(gradient).to(gradient.dtype)


def begin(processes: int, stage: int, precision: str, folder: Path | None = None) -> Engine:
    mesh = Mesh.create(SHARDS, processes)
    model = build(mesh, 0.5, dtype=torch.float32, config=NARROW)
    if folder is not None:
        load_weights(model, full_tensors(model), mesh.local_shards, folder)
    optim = OptimConfig()
    return Engine(
        model,
        mesh,
        optim,
        stage=stage,
        precision=precision,
        accumulation=1,
        optimizer=FeedbackAdamW(model, optim),
    )


def losses(engine: Engine, first: int, last: int) -> list[float]:
    replica = engine.mesh.data_rank
    return [engine.step([batch(seed=10 * step + replica)], 1e-2).loss for step in range(first, last + 1)]


def kept(engine: Engine) -> tuple[dict[str, Tensor], Tensor]:
    """The feedback of this replica as full tensors, and the scales of this process."""
    optimizer, shapes = engine.live.optimizer, full_tensors(engine.model)
    feedback = optimizer.replica_state("feedback")
    local = {
        each.parameter: feedback[each.parameter].view(each.local_shape(engine.mesh.processes))
        for each in shapes
    }
    full = {name: value.clone() for name, value in gathered(engine.model, local).items()}
    return full, optimizer.replica_state("scale")["largest"].clone()


def saved(folder: Path, stage: int, precision: str):
    """Losses of all steps on replicas of one process; what each replica kept where it was saved."""
    engine = begin(1, stage, precision)
    model = engine.model
    first = losses(engine, 1, SAVED_AT)
    architecture = Architecture(NARROW, SHARDS, 0.5, model.shared_channels, model.private_scale)
    (folder / "t.model").touch()
    saver = Saver(
        folder / "checkpoints",
        full_tensors(model),
        lambda: architecture,
        folder / "t.model",
        live=engine.live,
        settings=CheckpointConfig(),
    )
    before = kept(engine)
    saver.save(state(SAVED_AT))
    # Later steps must not reach the files.
    rest = losses(engine, SAVED_AT + 1, STEPS)
    saver.wait()
    return first + rest, before


def resumed(folder: Path, processes: int, stage: int, precision: str):
    """Losses of the steps after loading, what was kept then, notes, and steps of the optimizer."""
    engine = begin(processes, stage, precision, folder)
    load_master_weights(engine.live, full_tensors(engine.model), folder)
    notes = load_optimizer(engine.live, full_tensors(engine.model), folder)
    steps, before = engine.live.optimizer.steps, kept(engine)
    return losses(engine, SAVED_AT + 1, STEPS), before, notes, steps


def refused(folder: Path) -> str:
    """What a run with plain AdamW says of the state."""
    mesh = Mesh.create(SHARDS, 1)
    model = build(mesh, 0.5, dtype=torch.float32, config=NARROW)
    engine = Engine(model, mesh, OptimConfig(), stage=1, precision="fp32", accumulation=1)
    try:
        load_optimizer(engine.live, full_tensors(model), folder)
    except ValueError as error:
        return str(error)
    return ""


def same(a: tuple[dict[str, Tensor], Tensor], b: tuple[dict[str, Tensor], Tensor]) -> bool:
    return all(torch.equal(a[0][name], b[0][name]) for name in a[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16")]
)
def test_each_replica_gets_its_own_back(ranks, tmp_path, stage, precision):
    written = ranks(2).run(saved, tmp_path, stage, precision)
    (all_losses, first), (_, second) = written
    # There is something to lose, and the replicas would get another's.
    assert all(float(value.abs().max()) > 0 for value in first[0].values())
    assert not same(first, second)
    folder = tmp_path / "checkpoints" / f"step-{SAVED_AT:08}"
    assert verify(folder) == []
    described = json.loads((folder / "state.json").read_text())["optimizer"]
    assert (described["name"], described["steps"]) == ("feedback-adamw", SAVED_AT)
    assert [
        (kind["name"], kind["shared"], kind["shaped"], kind["copies"]) for kind in described["kinds"]
    ] == [
        ("exp_avg", True, True, 1),
        ("exp_avg_sq", True, True, 1),
        ("feedback", False, True, 2),
        ("scale", False, False, 2),
    ]
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert sizes.keys() == {
        "model.safetensors",
        "optimizer.exp_avg.safetensors",
        "optimizer.exp_avg_sq.safetensors",
        *(f"optimizer.{kind}.replica-{i}.safetensors" for kind in ("feedback", "scale") for i in (0, 1)),
    }
    for (_, before), (again, loaded, notes, steps) in zip(
        written, ranks(2).run(resumed, folder, 1, stage, precision), strict=True
    ):
        assert notes == [] and steps == SAVED_AT
        assert same(loaded, before)
        assert again == all_losses[SAVED_AT:]

    # One replica has no use for what two kept: it starts without, and says so.
    ((alone, (feedback, scale), notes, steps),) = ranks(1).run(resumed, folder, 1, stage, precision)
    assert steps == SAVED_AT and alone != all_losses[SAVED_AT:]
    assert not scale.any() and not any(value.any() for value in feedback.values())
    why = f"each replica keeps its own, {folder} was saved by 2 and this run has 1"
    assert notes == [f"the optimizer's {kind} starts from zero: {why}" for kind in ("feedback", "scale")]


def test_what_has_the_weights_shape_is_cut_anew(ranks, tmp_path):
    """Two replicas of two processes read what two of one wrote, but for tensors of another size."""
    written = ranks(2).run(saved, tmp_path, 1, "fp32")
    folder = tmp_path / "checkpoints" / f"step-{SAVED_AT:08}"
    for rank, (_, (feedback, scale), notes, _) in enumerate(ranks(4).run(resumed, folder, 2, 2, "fp32")):
        want = written[rank // 2][1][0]
        assert all(torch.equal(feedback[name], want[name]) for name in want)
        assert not scale.any()
        assert notes == [
            f"the optimizer's scale starts from zero: {folder} was saved by a run with another layout"
        ]
    assert ranks(1).run(refused, folder) == [
        f"{folder} holds the state of the optimizer feedback-adamw, and this run uses adamw: start a new run "
        f"from its weights with initialize={folder}"
    ]


def test_what_is_saved_for_each_weight():
    assert saved_numbers(AdamW.kinds) == saved_numbers(AdamW.kinds, 4) == 3
    assert saved_numbers(FeedbackAdamW.kinds) == 4 and saved_numbers(FeedbackAdamW.kinds, 4) == 7
