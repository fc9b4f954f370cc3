"""A block compiled by torch.compile computes the same function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from caat.parallel.mesh import Mesh
from layers.gpt import GPT
from layers.weights import initial_weights
from tests.layers.test_documents import BORDERS
from tests.models import SMALL, batch, build


def loss_and_gradients(shards: int, processes: int, checkpointing: str, compiled: bool, borders=None):
    mesh = Mesh(shards) if processes == 1 else Mesh.create(shards, processes)
    model = build(mesh, 0.5, checkpointing)
    if compiled:
        model.compile_cores()
    loss = model(*batch(), borders).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def check(compiled, plain) -> None:
    (loss, gradients), (expected, expected_gradients) = compiled, plain
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_same_in_one_process(checkpointing):
    check(loss_and_gradients(4, 1, checkpointing, True), loss_and_gradients(4, 1, checkpointing, False))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_the_same_with_masked_documents(checkpointing):
    cases = [(4, 1, checkpointing, compiled, BORDERS) for compiled in (True, False)]
    check(*(loss_and_gradients(*case) for case in cases))


@pytest.mark.slow
def test_the_same_in_two_processes(ranks):
    pool = ranks(2)
    compiled = pool.run(loss_and_gradients, 4, 2, "none", True)
    plain = pool.run(loss_and_gradients, 4, 2, "none", False)
    for ours, theirs in zip(compiled, plain, strict=True):
        check(ours, theirs)


@pytest.mark.slow
def test_many_layers_share_one_compilation():
    """torch.compile gives up on a function after recompiling it too often."""
    graphs = []
    for layers in (2, 12):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = replace(SMALL, layers=layers)
        model = GPT.empty(config, Mesh(4), 0.5).fill(initial_weights(config, 1))
        model.compile_cores()
        model(*batch()).mean().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
