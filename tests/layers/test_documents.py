"""Documents that share a sequence, masked, are computed as each of them alone, in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from caat.parallel.mesh import Mesh
from conf.model import ModelConfig
from conf.partition import paper_scale, shared_channels
from layers.documents import Documents, documents_of
from tests.models import FAMILIES, SCALED, SMALL, batch, build, gathered
from tests.reference import random_weights, token_losses

TOLERANCE = dict(rtol=0, atol=1e-10)
# Two sequences of 9 tokens. Documents of one token, of several, and one whose rest is in the next sequence.
BORDERS = torch.tensor([0, 2, 3, 9, 13, 18], dtype=torch.int32)


def alone(losses_of) -> torch.Tensor:
    """``losses_of(tokens, targets)`` of each document, called with that document only."""
    flat = [part.flatten() for part in batch()]
    each = [losses_of(*(part[None, first:last] for part in flat)) for first, last in pairwise(BORDERS)]
    return torch.cat(each, 1)


def measure(config: ModelConfig, shards: int, processes: int, ratio: float, checkpointing: str):
    mesh = Mesh(shards) if processes == 1 else Mesh.create(shards, processes)
    model = build(mesh, ratio, checkpointing, config=config)
    loss = model(*batch(), BORDERS).mean()
    loss.backward()
    return loss.detach(), gathered(model, {name: p.grad for name, p in model.named_parameters()})


def check(measured, config: ModelConfig, shards: int, ratio: float) -> None:
    weights = {name: w.requires_grad_() for name, w in random_weights(config).items()}
    k, scale = shared_channels(config.hidden, ratio, shards), paper_scale(shards)
    loss = alone(lambda *text: token_losses(weights, config, *text, shards, k, scale)).mean()
    loss.backward()
    got, gradients = measured
    torch.testing.assert_close(got, loss.detach(), **TOLERANCE)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, weights[name].grad, **TOLERANCE, msg=name)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_as_each_document_alone(ratio, checkpointing):
    for shards in (1, 4):
        check(measure(SMALL, shards, 1, ratio, checkpointing), SMALL, shards, ratio)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_as_each_document_alone_on_two_processes(ranks, checkpointing):
    for measured in ranks(2).run(measure, SMALL, 4, 2, 0.5, checkpointing):
        check(measured, SMALL, 4, 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family):
    check(measure(FAMILIES[family], 2, 1, 0.5, "none"), FAMILIES[family], 2, 0.5)


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_positions(kind):
    """Also dynamic scaling, which depends on the longest document: it is no longer than the model's."""
    model = build(Mesh(2), 0.5, config=replace(SMALL, rope_scaling=SCALED[kind]))
    torch.testing.assert_close(model(*batch(), BORDERS).view(1, -1), alone(model), **TOLERANCE)


def test_one_document_a_sequence_is_a_packed_sequence():
    model, whole = build(Mesh(2), 0.5), torch.tensor([0, 9, 18], dtype=torch.int32)
    torch.testing.assert_close(model(*batch(), whole), model(*batch()), **TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "head_size", "kernel"),
    [(torch.bfloat16, 64, True), (torch.float32, 64, False), (torch.bfloat16, 12, False)],
    ids=str,
)
def test_on_a_gpu_in_bfloat16_a_kernel_takes_the_borders(dtype, head_size, kernel):
    """With fake tensors, which have a device and a type but need no GPU."""
    with FakeTensorMode():
        x = torch.empty(2, 9, SMALL.hidden, dtype=dtype, device="cuda")
        borders = torch.empty(6, dtype=torch.int32, device="cuda")
        positions, documents = documents_of(borders, x, replace(SMALL, head_dim=head_size))
        assert (positions.shape, positions.device) == ((2, 9), x.device)
        assert (documents.mask is None) == kernel
        q, k = (torch.empty(2, heads, 9, head_size, dtype=dtype, device="cuda") for heads in (16, 8))
        out = documents.attend(q, k, k)
        assert (out.shape, out.dtype, out.device) == (q.shape, dtype, q.device)


def test_the_kernel_has_a_gradient():
    q, k, v = (
        torch.empty(2, heads, 9, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (16, 8, 8)
    )
    borders = torch.empty(6, dtype=torch.int32, device="meta")
    Documents(borders, mask=None).attend(q, k, v).sum().backward()
    assert [part.grad.shape for part in (q, k, v)] == [part.shape for part in (q, k, v)]
