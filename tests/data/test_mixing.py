"""Mixtures: exact shares in every global batch, an order of its own for each source, one number as state."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from math import ceil, floor
from zlib import crc32

import pytest
import torch

from caat.data.loader import Loader
from caat.data.mixing import MixedOrder, Quotas, shares_of
from caat.data.order import mix
from caat.data.shards import TokenShards
from tests.data.conftest import write_shards

SEQUENCE = 8
WEIGHTS = {"web": 0.5, "code": 0.3, "books": 0.15, "chat": 0.05}


@pytest.fixture
def sources(tmp_path):
    """Splits of 51, 20, 7 and 3 sequences, with tokens of their own in each."""
    found = {}
    for name, tokens in (("web", 414), ("code", 167), ("books", 58), ("chat", 25)):
        write_shards(tmp_path / name, [tokens], vocab_size=50_000 - tokens)
        found[name] = TokenShards(tmp_path / name, "train")
    return found


def loader(sources, size=1, rank=0, micro=2, position=0, seed=5, batch=16):
    place = {"data_rank": rank, "data_size": size, "position": position}
    return Loader(sources, SEQUENCE, micro, batch, seed, shares=shares_of(WEIGHTS), **place)


def rows(batches):
    return torch.cat([tokens for tokens, _ in batches])


def test_weights_are_exact_and_relative():
    assert shares_of({"b": 0.7, "a": 0.1}) == {"a": Fraction(1, 8), "b": Fraction(7, 8)}
    assert shares_of({"x": 1, "y": 1.0, "z": 1}) == dict.fromkeys("xyz", Fraction(1, 3))


def test_every_batch_and_all_together_hold_the_shares_as_far_as_whole_sequences_allow():
    draw = random.Random(3)
    for _ in range(400):
        weights = {
            f"source {i}": draw.choice([draw.randint(1, 9), 0.005, 0.37]) for i in range(draw.randint(2, 9))
        }
        batch, shares = draw.randint(1, 70), shares_of(weights)
        quotas, before = Quotas(shares, batch), dict.fromkeys(shares, 0)
        for number in range(1, 50):
            after = quotas.before(number)
            assert sum(after.values()) == batch * number
            for name, share in shares.items():
                exact, here = share * batch, after[name] - before[name]
                assert floor(exact) <= here <= ceil(exact)
                assert floor(exact * number) <= after[name] <= ceil(exact * number)
            before = after


def test_quotas_do_not_depend_on_what_was_asked_before():
    shares = shares_of({"a": 0.613, "b": 0.25, "c": 0.137})
    forward = Quotas(shares, 7)
    expected = [forward.before(number) for number in range(3000)]
    assert expected[1000] == {name: int(share * 7000) for name, share in shares.items()}
    for number in (2999, 5, 1004, 4, 0):
        assert forward.before(number) == Quotas(shares, 7).before(number) == expected[number]


def test_the_order_is_fixed():
    """Written out: another order would train another model from the same settings and checkpoints."""
    order = MixedOrder({"a": 3, "b": 5}, shares_of({"a": 0.3, "b": 0.7}), 4, seed=1)
    found = "".join(f"{name}{number} " for name, number in map(order.__getitem__, range(20)))
    assert found == "b3 a2 b0 b2 b1 a1 b4 b0 b3 a0 b1 b4 b2 a1 b0 b2 a2 b4 a0 b3 "


def test_each_source_is_read_as_if_it_were_alone(sources):
    """The oracle: what a loader of one source reads, in the order in which the mixture reads that source."""
    reader = loader(sources)
    seen = torch.cat([rows(reader.step()) for _ in range(40)]).tolist()
    alone = {
        name: Loader(shards, SEQUENCE, 1, 1, mix(5, crc32(name.encode()))) for name, shards in sources.items()
    }
    where = {tuple(row): name for name, shards in sources.items() for row in every(shards)}
    counted = Counter()
    for row in seen:
        name = where[tuple(row)]
        counted[name] += 1
        assert row == rows(alone[name].step())[0].tolist()
    # 40 batches of 16 hold whole numbers of each.
    assert counted == {"web": 320, "code": 192, "books": 96, "chat": 32}


def every(shards):
    return [shards.read(i * SEQUENCE, SEQUENCE).tolist() for i in range((len(shards) - 1) // SEQUENCE)]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_global_batches_do_not_depend_on_the_layout_or_the_order_of_the_names(sources, size):
    alone = loader(sources)
    turned = dict(reversed(sources.items()))
    together = [loader(turned, size, rank, micro=1) for rank in range(size)]
    for _ in range(8):
        assert torch.equal(rows(alone.step()), torch.cat([rows(part.step()) for part in together]))


def test_every_replica_gets_a_mixture(sources):
    where = {tuple(row): name for name, shards in sources.items() for row in every(shards)}
    for rank in range(4):
        found = Counter(where[tuple(row)] for row in rows(loader(sources, 4, rank).step()).tolist())
        assert found["web"] == 2 and found["code"] in (1, 2)


@pytest.mark.parametrize("steps", [0, 1, 7, 25])
def test_resumes_exactly(sources, steps):
    whole = loader(sources)
    for _ in range(steps):
        whole.step()
    resumed = loader(sources, position=whole.position)
    for _ in range(3):
        assert torch.equal(rows(resumed.step()), rows(whole.step()))


def test_counts_what_was_taken(sources):
    lengths = {name: len(every(shards)) for name, shards in sources.items()}
    order = MixedOrder(lengths, shares_of(WEIGHTS), 16, seed=5)
    counted: Counter[str] = Counter()
    for place in range(200):
        assert order.taken(place) == {name: counted[name] for name in sorted(lengths)}
        counted[order[place][0]] += 1


def test_reading_parts_of_two_batches_counts_each_once(monkeypatch):
    """As after a resume with another global batch: the steps go back by one batch, over and over."""
    counted = []
    before = Quotas._round_up
    monkeypatch.setattr(Quotas, "_round_up", lambda self, *given: (counted.append(1), before(self, *given)))
    quotas = Quotas(shares_of({"a": 0.123457, "b": 0.5, "c": 0.376543}), 16)
    for number in range(1000, 1010):
        for each in (number, number + 1, number, number + 1, number + 2):
            quotas.before(each)
    assert len(counted) == 1011
