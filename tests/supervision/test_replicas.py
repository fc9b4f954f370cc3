"""Copies that drift apart are named, and what is equal passes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from caat.parallel.mesh import Mesh
from caat.parallel.sums import SumOptions
from caat.supervision import replicas
from caat.supervision.control import Control
from caat.supervision.replicas import DriftError, ReplicaGuard
from caat.training.engine import Engine
from conf.optim import OptimConfig
from tests.models import batch, build


def drift(kind: str, stage: int):
    """What the guard says of good steps and of one in which the last rank's copy changed."""
    mesh = Mesh.create(4, 2, SumOptions(halves=kind == "channels of a half"))
    model = build(mesh, 0.5, dtype=torch.float32)
    engine = Engine(model, mesh, OptimConfig(lr=1e-2), stage=stage, precision="fp32", accumulation=1)
    guard = ReplicaGuard(model, model.blocks[-1], mesh, Control(), 2)
    last = dist.get_rank() == 3
    replicas.SHARDED_EACH_TIME = 100
    for step in (1, 2, 3, 4):
        guard.before(step)
        if step == 4 and last and kind == "channels":
            model.blocks[0].register_forward_hook(
                lambda module, inputs, out: out._replace(residual=out.residual + 1)
            )
        if step == 4 and last and kind == "channels of a half":
            model.blocks[0].register_forward_hook(
                lambda module, inputs, out: out._replace(
                    second=out.second._replace(residual=out.second.residual + 1)
                )
            )
        engine.step([batch(seed=step)], 1e-2)
        if step == 4 and last and kind == "norm":
            model.get_parameter("norm.weight").detach().view(torch.int32)[0] ^= 1
        if step == 4 and last and kind == "replica":
            model.get_parameter("blocks.1.mlp.down.weight").detach()[1, 1] += 1e-3
        try:
            guard.after(step)
        except DriftError as error:
            return step, str(error)
    return 4, ""


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_what_is_equal_passes(ranks, stage):
    assert set(ranks(4).run(drift, "nothing", stage)) == {(4, "")}


@pytest.mark.parametrize(
    ("kind", "stage", "says"),
    [
        ("norm", 0, "norm.weight on rank 3 differs from the others"),
        ("norm", 3, "norm.weight on rank 3 differs from the others"),
        ("replica", 1, "blocks.1.mlp.down.weight on rank"),
        ("channels", 0, "the shared channels of the residual stream on rank"),
        ("channels of a half", 0, "the shared channels of the residual stream on rank"),
    ],
)
def test_a_drift_is_named(ranks, kind, stage, says):
    for step, message in ranks(4).run(drift, kind, stage):
        assert step == 4 and says in message


def apart(kind: str):
    """After which step the guard complains about islands that are to be equal after step 5 alone.

    It is to check every second step. From step 1 on the second island has other weights.
    """
    mesh = Mesh.create(4, 2, islands=2)
    model = build(mesh, 0.5, dtype=torch.float32)
    engine = Engine(model, mesh, OptimConfig(lr=1e-2), stage=0, precision="fp32", accumulation=1)
    guard = ReplicaGuard(model, model.blocks[-1], mesh, Control(), 2, equal_after=lambda step: step in (1, 5))
    replicas.SHARDED_EACH_TIME = 100
    weights = {name: model.get_parameter(name).detach() for name in ("norm.weight", "head.weight")}
    for step in range(1, 7):
        guard.before(step)
        engine.step([batch(seed=step)], 1e-2)
        if step == 1 and mesh.island == 1:
            weights["norm.weight"].add_(1e-3)
            weights["head.weight"].add_(1e-3)
        if step == 4 and dist.get_rank() == 3 and kind == "within":
            weights["norm.weight"].view(torch.int32)[0] ^= 1
        if step == 5 and kind == "together":
            for weight in model.parameters():
                dist.broadcast(weight.detach(), mesh.tensor_rank, group=mesh.islands.group)
        try:
            guard.after(step)
        except DriftError as error:
            return step, str(error)
    return None


def test_islands_that_may_differ_are_compared_when_they_are_to_be_equal(ranks):
    for found in ranks(4).run(apart, "between"):
        assert found is not None and found[0] == 5
        assert "norm.weight on ranks" in found[1] and "head.weight on rank" in found[1]
    for found in ranks(4).run(apart, "within"):
        assert found is not None and found[0] == 4
        assert "norm.weight on rank " in found[1] and "head.weight" not in found[1]
    # Step 6 is checked again, but not between islands.
    assert set(ranks(4).run(apart, "together")) == {None}
