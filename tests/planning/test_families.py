"""The planner counts what other families than Llama 1 and 2 have, as real models do."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from caat.parallel.mesh import Mesh
from caat.planning.costs import checkpoint_bytes, flops_per_token
from caat.planning.parameters import local_parameters
from layers.gpt import GPT
from layers.weights import parameter_count
from tests.models import FAMILIES, OPTIONS, batch, build
from tests.planning.test_activations import check, compare
from tests.planning.test_memory import counted_tensor_bytes

# As in test_activations.py.
CASES = [
    (1, 1.0, "none", "fp32", 8),
    *((4, ratio, how, "fp32", 8) for ratio in (0.5, 1.0) for how in ("none", "selective", "full")),
    *((4, ratio, "none", "bf16", 4) for ratio in (0.0, 1.0)),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters(family):
    config = FAMILIES[family]
    for shards, processes in ((1, 1), (4, 1), (4, 2), (8, 8)):
        model = GPT.empty(config, Mesh(shards, processes), 0.5, device="meta")
        planned = [(p.numbers, p.rows) for p in local_parameters(config, shards, processes)]
        assert planned == [(p.numel(), len(p) if p.dim() > 1 else 1) for p in model.parameters()]
    assert checkpoint_bytes(config, 3) == 12 * parameter_count(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_flops(family):
    config, (tokens, targets) = FAMILIES[family], batch()
    model = build(Mesh(1), 1.0, dtype=torch.float32, config=config)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model(tokens, targets)
    assert 3 * counted.get_total_flops() == tokens.numel() * flops_per_token(config, tokens.shape[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_activations(ranks, family):
    check(compare(1, CASES, OPTIONS[family]), CASES)
    some = [CASES[1], CASES[2], CASES[-1]]
    check(ranks(2).run(compare, 2, some, OPTIONS[family])[-1], some)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_parallel_bytes(ranks, family):
    for counted, planned, full, said_of_full in ranks(2).run(counted_tensor_bytes, "auto", FAMILIES[family]):
        assert counted == planned
        assert full == said_of_full
