"""A loss or gradient that is not finite: every rank skips the step, nothing changes, and it is counted."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.training.engine import Engine
from conf.optim import OptimConfig
from tests.models import batch, build
from tests.training.test_engine import master_weight


def poisoned(stage: int, precision: str, where: str):
    """A good step, a bad one, a good one; only the last rank is poisoned."""
    mesh = Mesh.create(4, 2)
    model = build(mesh, 0.5, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    engine = Engine(
        model, mesh, OptimConfig(lr=1e-2, clip=1.0), stage=stage, precision=precision, accumulation=1
    )
    last = torch.distributed.get_rank() == 3
    poison = [False]

    def spoil_loss(module, inputs, losses):
        return losses * float("inf") if poison[0] else losses

    def spoil_gradient(gradient):
        return gradient * float("nan") if poison[0] else gradient

    if where == "loss":
        model.register_forward_hook(spoil_loss)
    else:
        model.blocks[1].mlp.register_forward_hook(
            lambda module, inputs, out: out.private.register_hook(spoil_gradient) and None
        )
    results, weights = [], []
    for step in range(3):
        poison[0] = last and step == 1
        results.append(engine.step([batch(seed=step)], 1e-2))
        weights.append(master_weight(engine, "head.weight").clone())
    moved = [not torch.equal(weights[i], weights[i + 1]) for i in range(2)]
    return [r.skipped for r in results], moved


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")]
)
def test_all_ranks_skip_together(ranks, stage, precision, where):
    for skipped, moved in ranks(4).run(poisoned, stage, precision, where):
        assert skipped == [False, True, False]
        assert moved == [False, True]
