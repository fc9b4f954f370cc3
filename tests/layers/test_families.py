"""What other families than Llama 1 and 2 have: against the reference, cached, and in the plan's counts."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from conf.cache import CacheConfig
from layers.cache import KVCache
from layers.host_cache import HostKVCache
from tests.layers.test_oracles import check, many, mesh_of
from tests.models import FAMILIES, batch, build

# Shards, ratio, checkpointing; for each number of processes.
CASES = {
    1: [(1, 1.0, "none"), (2, 0.5, "none"), (4, 1.0, "none"), (4, 0.5, "full"), (4, 0.0, "selective")],
    2: [(2, 1.0, "none"), (4, 0.5, "none"), (4, 0.5, "full"), (4, 1.0, "selective")],
    4: [(4, 1.0, "none"), (8, 0.5, "none")],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_process_equals_the_reference(family):
    check([many(1, CASES[1], FAMILIES[family])], CASES[1], FAMILIES[family])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_processes_equal_the_reference(ranks, processes, family):
    cases = CASES[processes]
    results = ranks(processes).run(many, processes, cases, FAMILIES[family])
    check(results, cases, FAMILIES[family])
    for first, *others in zip(*results, strict=True):
        for other in others:
            # Replicated gradients must be identical to the bit, not just close.
            for name in (name for name in first[1] if name.endswith("norm.weight")):
                assert torch.equal(first[1][name], other[1][name]), name


@torch.no_grad()
def decode(processes: int, family: str) -> None:
    """A prompt and five more tokens, on the direct path with either cache, equal a pass with gradients."""
    config, (tokens, _) = FAMILIES[family], batch()
    for ratio in (0.5, 1.0):
        model = build(mesh_of(4, processes), ratio, config=config).eval()
        with torch.enable_grad():
            want = model(tokens).detach()
        padding = torch.zeros(len(tokens), dtype=torch.long)
        place = config, model.mesh, padding, tokens.shape[1], torch.float64
        parts = [tokens[:, :4], *tokens[:, 4:].split(1, 1)]
        for cache in (KVCache(*place), HostKVCache(*place, settings=CacheConfig("host", keep=32))):
            got = torch.cat([model(part, cache=cache) for part in parts], 1)
            torch.testing.assert_close(got, want[:, 3:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding(ranks, family):
    decode(1, family)
    ranks(2).run(decode, 2, family)


def loss_and_gradients(family: str, checkpointing: str, compiled: bool):
    model = build(Mesh(4), 0.5, checkpointing, config=FAMILIES[family])
    if compiled:
        model.compile_cores()
    loss = model(*batch()).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.slow
def test_compiled():
    family = "biases and norms"
    for checkpointing in ("none", "selective"):
        loss, gradients = loss_and_gradients(family, checkpointing, True)
        expected, expected_gradients = loss_and_gradients(family, checkpointing, False)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-10)
