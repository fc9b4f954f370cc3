"""Optimizer steps whose gradients and weights travel along schedules, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.planning.data_traffic import sent_bytes
from caat.planning.parameters import local_parameters
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.topology.methods import make_schedule
from caat.topology.schedule_file import write_schedule
from conf.data_sync import DataSyncConfig
from tests.topology.networks import unit
from tests.training.replicas import (
    ACCUMULATION,
    EVEN,
    LR,
    STAGES,
    alike,
    engine_of,
    master,
    micro_batches,
)

FAST = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
CASES = [pytest.param(case, marks=[] if case in FAST else pytest.mark.slow) for case in STAGES]


def trained(processes: int, settings: DataSyncConfig, stage: int, precision: str):
    """Weights, losses and norms, whether replicas are alike, and what a step sent and should send."""
    mesh = Mesh.create(2, processes, data_sync=settings)
    engine = engine_of(mesh, stage, precision)
    guard = ReplicaGuard(engine.model, engine.model.blocks[-1], mesh, Control(), every=2)
    taken = []
    for step in range(3):
        mesh.data.start_step(step)
        guard.before(step)
        result = engine.step(micro_batches(mesh, step), LR)
        # Raises an error if replicas differ.
        guard.after(step)
        taken.append((result.loss, result.grad_norm))
    counts = mesh.data.ledger.totals("gradients", "weights")
    sent = counts["bytes_gradients"], counts["bytes_weights"]
    held = local_parameters(EVEN, mesh.shards, processes)
    plan = sent_bytes(held, mesh.data_size, stage, precision, ACCUMULATION, sync=settings)
    return master(engine), taken, alike(engine), sent, plan


def both(processes: int, settings: DataSyncConfig, case: tuple[int, str]) -> tuple:
    return trained(processes, settings, *case), trained(processes, DataSyncConfig(), *case)


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_get_the_bits_of_the_backend(ranks, case):
    settings = DataSyncConfig(schedule="auto", topology="full:2")
    by_rank = ranks(4).run(both, 2, settings, case)
    for ours, plain in by_rank:
        assert torch.equal(ours[0], plain[0]) and ours[1] == plain[1] and ours[2]
    ours, _ = by_rank[0]
    assert ours[3] == ours[4]


@pytest.mark.parametrize("case", CASES)
def test_four_replicas_are_alike_and_near_the_backend(ranks, case, tmp_path):
    # On a line, the first replica sends less than the second.
    write_schedule(make_schedule(unit("mesh:4"), "multitree"), tmp_path / "line.json")
    settings = DataSyncConfig(schedule=str(tmp_path / "line.json"))
    by_rank = ranks(4).run(both, 1, settings, case)
    for ours, plain in by_rank:
        assert torch.allclose(ours[0], plain[0], rtol=0, atol=2e-6 if case[1] == "fp32" else 2e-3)
        assert torch.equal(ours[0], by_rank[0][0][0]) and ours[1] == by_rank[0][0][1] and ours[2]
    first, second = by_rank[0][0], by_rank[1][0]
    assert first[3] == first[4] and sum(first[3]) < sum(second[3])


def test_compressed_weights_travel_along_a_schedule(ranks):
    settings = DataSyncConfig(schedule="auto", topology="ring:2", weights_codec="int8")
    slices = DataSyncConfig(weights_codec="int8")
    ours = ranks(4).run(trained, 2, settings, 1, "fp32")[0]
    plain = ranks(4).run(trained, 2, slices, 1, "fp32")[0]
    assert torch.equal(ours[0], plain[0]) and ours[1] == plain[1] and ours[2]
    assert ours[3] == ours[4]
