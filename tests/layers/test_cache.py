"""The model computes the same with and without a cache, at every N, P and ratio."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from layers.cache import KVCache
from tests.models import SMALL, build

TOLERANCE = dict(rtol=0, atol=1e-10)
RATIOS = (0.0, 0.5, 1.0)
LENGTH, PROMPTS = 12, (7, 4, 1)


def mesh_of(shards: int, processes: int) -> Mesh:
    return Mesh(shards) if processes == 1 else Mesh.create(shards, processes)


def texts() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(SMALL.vocab_size, (len(PROMPTS), LENGTH), generator=generator)


@torch.no_grad()
def compare(shards: int, processes: int, ratio: float):
    """Local logits after the prompts and 5 more tokens, with a cache and from all tokens at once."""
    model = build(mesh_of(shards, processes), ratio).eval()
    text = texts()
    padding = max(PROMPTS) - torch.tensor(PROMPTS)
    cache = KVCache(SMALL, model.mesh, padding, LENGTH, torch.float64)
    rows = [
        torch.cat([torch.full((max(PROMPTS) - length,), 60), row[:length]])
        for row, length in zip(text, PROMPTS, strict=True)
    ]
    cached = [model(torch.stack(rows), cache=cache)]
    for step in range(5):
        new = [row[length + step] for row, length in zip(text, PROMPTS, strict=True)]
        cached.append(model(torch.stack(new)[:, None], cache=cache))
    whole = model(text)
    expected = [row[length - 1 : length + 5] for row, length in zip(whole, PROMPTS, strict=True)]
    return torch.cat(cached, 1), torch.stack(expected)


def compare_all(processes: int, shard_counts: list[int]):
    return [compare(shards, processes, ratio) for shards in shard_counts for ratio in RATIOS]


def check(results) -> None:
    for cached, expected in results:
        torch.testing.assert_close(cached, expected, **TOLERANCE)


def test_one_process():
    check(compare_all(1, [1, 2, 4]))


def test_two_processes(ranks):
    for results in ranks(2).run(compare_all, 2, [2, 4]):
        check(results)


@torch.no_grad()
def prefill_in_parts(ratio: float):
    """The same prompt read at once and in two parts, without padding."""
    model = build(Mesh(2), ratio).eval()
    text, none = texts()[:2], torch.zeros(2, dtype=torch.long)
    whole = model(text, cache=KVCache(SMALL, model.mesh, none, LENGTH, torch.float64))
    cache = KVCache(SMALL, model.mesh, none, LENGTH, torch.float64)
    model(text[:, :5], cache=cache)
    return whole, model(text[:, 5:], cache=cache)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_prompt_may_be_read_in_parts(ratio):
    torch.testing.assert_close(*prefill_in_parts(ratio), **TOLERANCE)


def test_the_cache_holds_the_heads_of_the_local_shards_alone():
    mesh = Mesh(4, processes=2, tensor_rank=1)
    cache = KVCache(SMALL, mesh, torch.zeros(3, dtype=torch.long), LENGTH, torch.float32)
    _, layers = cache.extend(1)
    assert len(layers) == SMALL.layers
    assert layers[0].keys.shape == layers[0].values.shape == (3, SMALL.kv_heads // 2, LENGTH, SMALL.head_size)


def bytes_sent(ratio: float) -> tuple[int, int]:
    """Bytes sent in a prefill of 2 x 8 tokens: inside the layers, and in total."""
    model = build(Mesh.create(4, 2), ratio).eval()
    cache = KVCache(SMALL, model.mesh, torch.zeros(2, dtype=torch.long), 8, torch.float64)
    with torch.no_grad():
        model(texts()[:2, :8], cache=cache)
    sent = model.mesh.tensor.ledger.sent
    return sent["forward", "sync"], sum(sent.values())


@pytest.mark.parametrize("ratio", RATIOS)
def test_prefill_sends_the_shared_channels_and_the_embedding(ranks, ratio):
    message = 16 * SMALL.hidden * 8
    inside = int(2 * SMALL.layers * message * ratio)
    assert ranks(2).run(bytes_sent, ratio) == [(inside, inside + message)] * 2
