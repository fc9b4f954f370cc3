"""Oracles 1 to 6: the sharded model against the independent reference, in float64."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from conf.model import ModelConfig
from conf.partition import shared_channels
from tests.models import SMALL, batch, build, gathered
from tests.reference import loss_and_gradients, random_weights, streams

SHARDS = (1, 2, 4, 8)
RATIOS = (0.0, 0.25, 0.5, 1.0)
TOLERANCE = dict(rtol=0, atol=1e-10)


def mesh_of(shards: int, processes: int) -> Mesh:
    return Mesh(shards) if processes == 1 else Mesh.create(shards, processes)


def measure(shards: int, processes: int, ratio: float, checkpointing: str, config: ModelConfig = SMALL):
    """Loss, full gradients, the stream after each block on the local shards, and the counts."""
    mesh = mesh_of(shards, processes)
    model = build(mesh, ratio, checkpointing, config=config)
    tokens, targets = batch()
    loss = model(tokens, targets).mean()
    loss.backward()
    counts = dict(mesh.tensor.ledger.calls), dict(mesh.tensor.ledger.sent)
    gradients = gathered(model, {name: p.grad for name, p in model.named_parameters()})
    after_blocks = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, stream: after_blocks.append(stream.settled()))
    with torch.no_grad():
        model(tokens, targets)
    return loss.detach(), gradients, after_blocks, counts


def many(processes: int, cases, config: ModelConfig = SMALL):
    return [measure(shards, processes, ratio, how, config) for shards, ratio, how in cases]


def check(results_by_rank, cases, config: ModelConfig = SMALL):
    weights, (tokens, targets) = random_weights(config), batch()
    for index, (shards, ratio, checkpointing) in enumerate(cases):
        k = shared_channels(SMALL.hidden, ratio, shards)
        loss, gradients = loss_and_gradients(weights, config, tokens, targets, shards, k)
        finals = streams(weights, config, tokens, shards, k, shards**0.5)
        local = shards // len(results_by_rank)
        for rank, results in enumerate(results_by_rank):
            got_loss, got, after_blocks, _ = results[index]
            case = f"N={shards} ratio={ratio} checkpointing={checkpointing} rank={rank}"
            torch.testing.assert_close(got_loss, loss, **TOLERANCE, msg=lambda m, c=case: f"{c}: {m}")
            assert set(got) == set(gradients), case
            for name, gradient in gradients.items():
                torch.testing.assert_close(
                    got[name], gradient, **TOLERANCE, msg=lambda m, c=case, n=name: f"{c} {n}: {m}"
                )
            for row, shard in zip(
                after_blocks[-1].stack(), range(rank * local, (rank + 1) * local), strict=True
            ):
                torch.testing.assert_close(row, finals[shard], **TOLERANCE)


def test_one_process_equals_the_reference():
    cases = [(n, ratio, "none") for n in SHARDS for ratio in RATIOS]
    cases += [(4, 0.5, "full"), (4, 0.5, "selective")]
    check([many(1, cases)], cases)


def test_ratio_one_is_the_unsharded_model():
    losses = [measure(n, 1, 1.0, "none") for n in SHARDS]
    for loss, gradients, _, _ in losses[1:]:
        torch.testing.assert_close(loss, losses[0][0], **TOLERANCE)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, losses[0][1][name], **TOLERANCE)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_the_reference(ranks, processes):
    cases = [(n, ratio, "none") for n in SHARDS if n % processes == 0 for ratio in RATIOS]
    cases += [(processes, 0.5, "full"), (8, 0.25, "selective"), (8, 0.5, "full"), (8, 0.0, "full")]
    results = ranks(processes).run(many, processes, cases)
    check(results, cases)
    for index, (shards, ratio, checkpointing) in enumerate(cases):
        check_counts(results[0][index][3], ratio, checkpointing)
        first = results[0][index]
        for other in results[1:]:
            # Replicated gradients and shared channels must be identical to the bit, not just close.
            for name, gradient in first[1].items():
                if name.endswith("norm.weight"):
                    assert torch.equal(gradient, other[index][1][name]), name
            for ours, theirs in zip(first[2], other[index][2], strict=True):
                assert torch.equal(ours.shared, theirs.shared), (shards, ratio)


def check_counts(counts, ratio: float, checkpointing: str) -> None:
    """Each layer has two all-reduces of k channels forward and two backward; the others are full."""
    calls, sent = counts
    size = 8  # float64
    tokens = batch()[0].numel()
    k = int(ratio * SMALL.hidden)
    layers = 2 * SMALL.layers if k else 0
    assert calls.get(("forward", "sync"), 0) == layers, checkpointing
    assert calls.get(("backward", "sync"), 0) == layers
    assert sent.get(("forward", "sync"), 0) == layers * k * tokens * size
    assert sent.get(("backward", "sync"), 0) == layers * k * tokens * size
    assert sent["forward", "embedding"] == sent["backward", "embedding"] == SMALL.hidden * tokens * size
    assert calls["backward", "replicated"] == 1
    assert sent["backward", "replicated"] == (2 * SMALL.layers + 1) * SMALL.hidden * size
    assert calls["forward", "loss"] == 2 and sent["forward", "loss"] == 3 * tokens * size
    assert ("backward", "loss") not in calls


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradcheck(ratio):
    """The backward pass is the exact derivative, checked on weights that together involve every operator."""
    model = build(Mesh(2), ratio)
    tokens, targets = batch(size=1, length=3)
    names = [
        "blocks.0.attention.output.weight",
        "blocks.0.mlp_norm.weight",
        "blocks.1.mlp.gate_up.weight",
        "head.weight",
        "embedding.weight",
    ]

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (tokens, targets))

    inputs = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_padding_is_masked():
    """61 entries on 8 shards are padded to 64; the padding gets neither probability nor gradient."""
    model = build(Mesh(8), 0.5)
    tokens, targets = batch()
    model(tokens, targets).mean().backward()
    assert model.padded_vocab == 64
    assert model.head.weight.grad[61:].abs().max() == 0


def place():
    mesh = Mesh.create(4, 2)
    return mesh.tensor_rank, mesh.data_rank, list(mesh.local_shards), mesh.data_size


def test_mesh_layout(ranks):
    places = ranks(4).run(place)
    assert places == [(0, 0, [0, 1], 2), (1, 0, [2, 3], 2), (0, 1, [0, 1], 2), (1, 1, [2, 3], 2)]
