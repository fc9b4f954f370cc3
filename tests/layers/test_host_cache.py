"""The cache in host memory: exact with enough rows, its bound is never violated, its bytes are counted."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch

from conf.cache import CacheConfig
from layers.cache import KVCache
from layers.host_cache import FIRST, LAST, HostKVCache, HostLayerCache, Transfers
from layers.host_memory import HostMemory
from layers.key_index import KeyIndex
from tests.layers.test_cache import mesh_of
from tests.models import SMALL, build

LONG = replace(SMALL, sequence=96)
PROMPTS = (60, 50, 41)
NEW = 12
HOST = CacheConfig("host", keep=4)


@torch.no_grad()
def continued(shards: int, processes: int, dtype: torch.dtype, settings: CacheConfig):
    """Logits of new tokens after prompts of several lengths, with the device's cache and with the host's."""
    model = build(mesh_of(shards, processes), 0.5, dtype=dtype, config=LONG).eval()
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(SMALL.vocab_size, (len(PROMPTS), max(PROMPTS) + NEW), generator=generator)
    found = []
    for padding in (max(PROMPTS) - torch.tensor(PROMPTS), torch.zeros(3, dtype=torch.long)):
        arguments = (LONG, model.mesh, padding, max(PROMPTS) + NEW, dtype)
        for cache in (KVCache(*arguments), HostKVCache(*arguments, settings=settings)):
            logits = [model(text[:, : max(PROMPTS)], cache=cache)[:, -1]]
            logits += [model(text[:, [at]], cache=cache)[:, -1] for at in range(max(PROMPTS), text.shape[1])]
            found.append(torch.stack(logits, 1))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_enough_rows_it_is_the_devices_cache_bit_for_bit(dtype):
    for index in ("int8", "int4"):
        padded, host_padded, plain, host = continued(4, 1, dtype, replace(HOST, keep=72, index=index))
        assert torch.equal(padded, host_padded) and torch.equal(plain, host)


@torch.no_grad()
def test_tokens_are_forgotten():
    """After rewinding, the same tokens give the same logits."""
    model = build(mesh_of(2, 1), 0.5, config=LONG).eval()
    text = torch.randint(SMALL.vocab_size, (2, 72), generator=torch.Generator().manual_seed(1))
    for settings in (HOST, replace(HOST, keep=72)):
        cache = HostKVCache(LONG, model.mesh, torch.tensor([0, 7]), 72, torch.float64, settings=settings)
        found = []
        for start in (0, 60, 0, 66):
            cache.rewind(start)
            if start == 0:
                model(text[:, :60], cache=cache)
            logits = [model(text[:, [at]], cache=cache)[:, -1] for at in range(cache.length, 72)]
            found.append(torch.stack(logits[-6:]))
        assert all(torch.equal(found[0], each) for each in found[1:])


@pytest.mark.parametrize("error", [None, 0.1])
def test_the_same_rows_on_any_number_of_processes(ranks, error):
    settings = replace(HOST, error=error)
    alone = continued(4, 1, torch.float64, settings)
    for rank, parts in enumerate(ranks(2).run(continued, 4, 2, torch.float64, settings)):
        for whole, part in zip(alone, parts, strict=True):
            expected = whole.chunk(2, -1)[rank]
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-9)
    assert (alone[0] - alone[1]).abs().max() > 1e-6, "24 of 72 rows should make a difference"


def attended(
    keys: torch.Tensor, queries: torch.Tensor, values: torch.Tensor, *, first: int, error: float | None
):
    """Outputs of a layer [batch, heads, tokens, d] after ``first`` tokens, and the worst bound."""
    (batch, heads, tokens, d), transfers = keys.shape, Transfers()
    memory = HostMemory((batch, heads, tokens, d), torch.float32, torch.device("cpu"))
    padding = torch.zeros(batch, dtype=torch.long)
    layer = HostLayerCache(memory, padding, CacheConfig("host", keep=8, error=error), transfers)
    found = []
    for length, stop in [(0, first), *((at, at + 1) for at in range(first, tokens))]:
        layer.length, part = length, slice(length, stop)
        found.append(layer.attend(queries[:, :, part], keys[:, :, part], values[:, :, part]))
    return torch.cat(found, 2), float(transfers.missing_worst)


def test_a_head_gets_more_rows_only_for_itself():
    """Neither the other heads of a process nor the other texts of a batch change what a head attends to."""
    generator = torch.Generator().manual_seed(2)
    keys, queries, values = torch.randn(3, 2, 2, 150, D, generator=generator)
    # One head of one text needs hundreds of rows, the others hardly any.
    queries[:] *= 30
    queries[0, 1] *= 0.001
    both, _ = attended(keys, queries, values, first=120, error=0.01)
    for text in range(2):
        for head in range(2):
            own = [each[text : text + 1, head : head + 1] for each in (keys, queries, values)]
            alone, worst = attended(*own, first=120, error=0.01)
            torch.testing.assert_close(both[text, head], alone[0, 0], rtol=0, atol=1e-5)
            assert worst <= 0.01


def test_a_first_pass_of_one_token_says_nothing_about_the_range():
    generator = torch.Generator().manual_seed(3)
    keys, queries, values = torch.randn(3, 1, 1, 150, D, generator=generator)
    keys[..., 3] *= 250
    found, worst = attended(keys, queries, values, first=1, error=0.01)
    exact = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    assert worst <= 0.01 and (found - exact).norm(dim=-1).max() < 0.1


B, H, GROUP, D, TOKENS = 2, 3, 2, 16, 200


def keys_of(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Keys [batch, heads, tokens, d]: plain ones, and ones that a quantiser or a sum gets wrong."""
    keys = torch.randn(B, H, TOKENS, D, generator=generator)
    if kind == "outliers":
        keys[..., 3] *= 100
        keys += 10 * torch.randn(D, generator=generator)
    elif kind == "constant channels, then not":
        keys[:, :, :185, 2:9] = 1.5
    elif kind == "a late giant":
        keys[:, :, 190:] *= 1e3
    elif kind == "all alike":
        keys = keys[:, :, :1] + 1e-4 * keys
    elif kind == "large and cancelling":
        keys = 1e4 + keys
    elif kind == "zeros":
        keys[:, :, 1:] = 0
    return keys


KINDS = (
    "plain",
    "outliers",
    "constant channels, then not",
    "a late giant",
    "all alike",
    "large and cancelling",
    "zeros",
)


def memory(batch: int) -> HostMemory:
    return HostMemory((batch, H, TOKENS, D), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("index", ["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_never_violated(kind, index):
    """The true mass of the rows left out, in float64, is at most the bound, for every query and step."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        keys, values = keys_of(kind, generator), torch.randn(B, H, TOKENS, D, generator=generator)
        queries = torch.randn(B, H * GROUP, TOKENS, D, generator=generator) * (0.3, 1.0, 5.0, 40.0)[seed]
        padding = torch.tensor([0, 30])
        transfers = Transfers()
        settings = CacheConfig("host", keep=8, index=index)
        layer = HostLayerCache(memory(B), padding, settings, transfers)
        visible = torch.arange(TOKENS) >= padding[:, None]
        for length, stop in [(0, 180), *((at, at + 1) for at in range(180, TOKENS))]:
            layer.length = length
            layer.mask = visible[:, None, None, :stop].expand(-1, 1, stop - length, -1)
            part = slice(length, stop)
            before = transfers.missing_worst
            transfers.missing_worst = 0.0
            layer.attend(queries[:, :, part], keys[:, :, part], values[:, :, part])
            if length:
                q = queries[:, :, length].double().unflatten(1, (H, GROUP))
                logits = q @ keys[:, :, :stop].double().mT / sqrt(D)
                mass = logits.masked_fill(~visible[:, None, None, :stop], -torch.inf).softmax(-1)
                chosen = layer._hot.places[:, :, None].expand(-1, -1, GROUP, -1)
                missing = mass.scatter(-1, chosen, 0.0).sum(-1)
                assert float(missing.max()) <= transfers.missing_worst * (1 + 1e-6) + 1e-12
            transfers.missing_worst = max(before, transfers.missing_worst)
        assert 0 <= transfers.missing_mean <= transfers.missing_worst <= 1


def estimated(keys: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of the index's logits of one head, in float64, and their bounds, per token."""
    index = KeyIndex((1, 1, len(keys), D), "int8", torch.device("cpu"))
    index.add(keys[None, None])
    logits, bounds = index.estimate(query[None, None, None])
    return (logits[0, 0, 0] - keys.double() @ query.double() / sqrt(D)).abs(), bounds[0, 0, 0]


def test_the_bound_of_a_logit_is_as_small_as_can_be():
    """The worst key for a query comes close to the bound, and rounding in float32 is covered too."""
    query = torch.ones(D)
    keys = torch.cat([torch.eye(D), -torch.eye(D), torch.zeros(1, D)])
    # The first channel sets the step; all others lie between two steps.
    keys[-1] = 10.499 / 127
    keys[-1, 0] = 1.0
    keys = torch.cat([keys, -keys[-1:]])
    error, bound = estimated(keys, query)
    assert (error <= bound).all() and error[-1] > 0.9 * bound[-1]
    alike = (1e4 * torch.randn(1, D, generator=torch.Generator().manual_seed(0))).expand(8, -1)
    error, bound = estimated(alike, torch.randn(D, generator=torch.Generator().manual_seed(1)))
    assert (error > 1e-5).all() and (error <= bound).all()


def decode(settings: CacheConfig, tokens: int = 60):
    """One layer on random keys of a few directions; return outputs, exact outputs and what was moved."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(1, H, 1, D, generator=generator)
    keys = torch.randn(1, H, TOKENS, D, generator=generator) + directions
    values = torch.randn(1, H, TOKENS, D, generator=generator)
    queries = 2 * torch.randn(1, H * GROUP, TOKENS, D, generator=generator)
    transfers = Transfers()
    layer = HostLayerCache(memory(1), torch.zeros(1, dtype=torch.long), settings, transfers)
    errors = []
    for length, stop in [(0, TOKENS - tokens), *((at, at + 1) for at in range(TOKENS - tokens, TOKENS))]:
        layer.length = length
        part = slice(length, stop)
        out = layer.attend(queries[:, :, part], keys[:, :, part], values[:, :, part])
        if length:
            q = queries[:, :, part].unflatten(1, (H, GROUP))[..., 0, :]
            exact = (q @ keys[:, :, :stop].mT / sqrt(D)).softmax(-1) @ values[:, :, :stop]
            errors.append((out.squeeze(2).unflatten(1, (H, GROUP)) - exact).norm(dim=-1).mean())
    return float(torch.stack(errors).mean()), transfers


def test_more_rows_miss_less_and_the_error_is_kept():
    found = {keep: decode(CacheConfig("host", keep=keep)) for keep in (8, 32, 128, 512)}
    errors = [error for error, _ in found.values()]
    means = [transfers.missing_mean for _, transfers in found.values()]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6 < errors[0]
    assert means == sorted(means, reverse=True) and means[-1] == 0
    for wanted in (0.3, 0.01):
        error, transfers = decode(CacheConfig("host", keep=8, error=wanted))
        assert transfers.missing_worst <= wanted and error < found[8][0]
    # Twice the bits are worth something.
    assert decode(CacheConfig("host", keep=32, index="int4"))[1].missing_mean > means[1]


def test_counted_bytes():
    """A token stores its key and value once, and a row that is on the device is not fetched again."""
    row = 2 * D * 4
    _, transfers = decode(CacheConfig("host", keep=512))
    # Only the rows between the first and the last few were not on the device after the prompt.
    assert transfers.stored_bytes == H * TOKENS * row
    assert transfers.fetched_bytes == H * (TOKENS - 60 - FIRST - LAST) * row
    assert transfers.full_bytes == H * row * sum(range(TOKENS - 59, TOKENS + 1))
    few = decode(CacheConfig("host", keep=8))[1]
    assert 0 < few.fetched_bytes < H * row * 60 * 8
    sizes = [KeyIndex((1, H, TOKENS, D), bits, torch.device("cpu")).nbytes for bits in ("int8", "int4")]
    assert sizes == [H * TOKENS * (D + 4), H * TOKENS * (D // 2 + 4)]
