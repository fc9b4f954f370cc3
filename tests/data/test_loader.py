"""Batches are the same for every layout and are reproduced exactly after a restart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caat.data.loader import Loader, validation_batches
from caat.data.prefetch import Prefetch
from caat.data.shards import TokenShards
from tests.data.conftest import write_shards

SEQUENCE = 8


@pytest.fixture
def shards(tmp_path):
    """51 sequences plus a few tokens."""
    write_shards(tmp_path / "shards", [100, 33, 281], split="train")
    return TokenShards(tmp_path / "shards", "train")


def loader(shards, size=1, rank=0, micro=2, position=0, seed=5, masked=False):
    place = {"data_rank": rank, "data_size": size, "position": position}
    return Loader(shards, SEQUENCE, micro, 16, seed, **place, masked=masked)


def rows(batches):
    return torch.cat([tokens for tokens, _ in batches])


def test_targets_are_shifted_inputs(shards):
    for tokens, targets in loader(shards).step():
        assert tokens.shape == targets.shape == (2, SEQUENCE) and tokens.dtype == torch.int64
        assert tokens.is_contiguous() and targets.is_contiguous()
        assert torch.equal(tokens[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("micro", [1, 2])
def test_global_batches_do_not_depend_on_the_layout(shards, size, micro):
    alone = loader(shards)
    together = [loader(shards, size, rank, micro) for rank in range(size)]
    for _ in range(8):
        shares = [part.step() for part in together]
        assert all(len(share) == 16 // size // micro for share in shares)
        assert torch.equal(rows(alone.step()), torch.cat([rows(share) for share in shares]))


def test_an_epoch_is_every_sequence_once(shards):
    count = 51
    reader = loader(shards)
    seen = torch.cat([rows(reader.step()) for _ in range(13)])
    everything = {tuple(shards.read(i * SEQUENCE, SEQUENCE).tolist()) for i in range(count)}
    epochs = [[tuple(row) for row in seen[e * count : (e + 1) * count].tolist()] for e in range(4)]
    for epoch in epochs:
        assert set(epoch) == everything and len(epoch) == count
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7, 25])
def test_resumes_exactly(shards, steps):
    whole = loader(shards)
    for _ in range(steps):
        whole.step()
    assert whole.position == steps * 16
    resumed = loader(shards, position=whole.position)
    moved = loader(shards)
    moved.step()
    moved.position = whole.position
    for _ in range(3):
        expected = rows(whole.step())
        assert torch.equal(rows(resumed.step()), expected)
        assert torch.equal(rows(moved.step()), expected)


def test_position_may_be_off_the_grid(shards):
    seen = torch.cat([rows(loader(shards, position=at).step()) for at in (0, 16, 32, 48)])
    assert torch.equal(rows(loader(shards, position=37).step()), seen[37:53])


def test_seeds_differ(shards):
    assert not torch.equal(rows(loader(shards, seed=1).step()), rows(loader(shards, seed=2).step()))


def test_batch_must_divide(shards):
    with pytest.raises(
        ValueError, match=r"global_batch=16 is not a multiple of train\.micro_batch=3 times 2"
    ):
        loader(shards, size=2, micro=3)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_sequence_longer_than_the_data(tmp_path, split):
    write_shards(tmp_path / "few", [SEQUENCE], split=split)
    shards = TokenShards(tmp_path / "few", split)
    with pytest.raises(ValueError, match=r"has 8 tokens.*train\.sequence=8.*lower train\.sequence"):
        loader(shards) if split == "train" else validation_batches(shards, SEQUENCE, 2, 4)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 12, 51, 1000])
def test_validation_counts_every_sequence_once(shards, size, count):
    ranks = [
        list(validation_batches(shards, SEQUENCE, 4, count, data_rank=rank, data_size=size))
        for rank in range(size)
    ]
    assert len({len(batches) for batches in ranks}) == 1 and ranks[0]
    counted = []
    for together in zip(*ranks, strict=True):
        for tokens, targets, valid in together:
            assert tokens.shape == targets.shape == (4, SEQUENCE)
            counted.append(tokens[:valid])
    first = [torch.from_numpy(shards.read(i * SEQUENCE, SEQUENCE)) for i in range(min(count, 51))]
    assert torch.equal(torch.cat(counted), torch.stack(first))


def test_batches_read_ahead_are_the_same(shards):
    plain, ahead = loader(shards), Prefetch(loader(shards), torch.device("cpu"))
    for _ in range(5):
        assert ahead.position == plain.position
        assert torch.equal(rows(ahead.step()), rows(plain.step()))
    # A run that continues from the position of the batches handed out misses none of those read ahead.
    resumed = Prefetch(loader(shards, position=ahead.position), torch.device("cpu"))
    assert torch.equal(rows(resumed.step()), rows(plain.step()))


def test_what_fails_ahead_is_raised_at_its_step(shards):
    reader = loader(shards)
    ahead = Prefetch(reader, torch.device("cpu"))
    ahead.step()
    ahead.step()
    reader.shards = {}
    with pytest.raises(KeyError):
        for _ in range(2):
            ahead.step()


def first_tokens(row: list[int], bos: int, eos: int) -> list[int]:
    """The places in a sequence where documents begin, by reading it from left to right."""
    places = [0]
    for place in range(1, len(row)):
        inside = bos == eos and row[place - 1] != eos
        if row[place] == bos and not inside:
            places.append(place)
    return places


@pytest.mark.parametrize("eos", [2, 1], ids=["two tokens", "one token"])
@pytest.mark.parametrize("size", [1, 4])
def test_documents_begin_with_their_first_token(tmp_path, eos, size):
    write_shards(tmp_path / "few", [100, 33, 281], vocab_size=5, eos=eos)
    shards = TokenShards(tmp_path / "few", "train")
    found, cut = 0, 0
    for rank in range(size):
        for tokens, _, borders in loader(shards, size, rank, masked=True).step():
            starts = [first_tokens(row, 1, eos) for row in tokens.tolist()]
            expected = [number * SEQUENCE + at for number, places in enumerate(starts) for at in places]
            assert borders.dtype == torch.int32
            assert borders.tolist() == [*expected, tokens.numel()]
            found += sum(map(len, starts)) - len(starts)
            cut += sum(row[0] != 1 for row in tokens.tolist())
    assert found > 0 and cut > 0
    *batch, borders, rows = next(validation_batches(shards, SEQUENCE, 4, 8, masked=True))
    assert len(batch) == 2 and rows == 4 and borders[-1] == 4 * SEQUENCE


@pytest.mark.parametrize("size", [1, 4])
def test_targets_that_do_not_count_and_borders_are_read(tmp_path, size):
    """From the marks, whatever the tokens are."""
    sizes = [100, 33, 281]
    text = write_shards(tmp_path / "rows", sizes, rows="prompt")
    marks = np.random.default_rng(1).integers(4, size=len(text), dtype=np.uint8)
    for number, part in enumerate(np.split(marks, np.cumsum(sizes)[:-1])):
        part.tofile(tmp_path / "rows" / f"train-{number:05d}.marks")
    at = {tuple(text[i * SEQUENCE : (i + 1) * SEQUENCE]): i * SEQUENCE for i in range(51)}
    readers = [
        loader(TokenShards(tmp_path / "rows", "train"), size, rank, masked=True) for rank in range(size)
    ]
    for _ in range(5):
        batches = [batch for reader in readers for batch in reader.step()]
        seen = 0
        for tokens, targets, borders in batches:
            begin = []
            for number, (row, wanted) in enumerate(zip(tokens.tolist(), targets.tolist(), strict=True)):
                first = at[tuple(row)]
                for place in range(SEQUENCE):
                    counts = marks[first + place + 1] & 1
                    assert wanted[place] == (text[first + place + 1] if counts else -100)
                    seen += counts
                    if place == 0 or marks[first + place] & 2:
                        begin.append(number * SEQUENCE + place)
            assert borders.tolist() == [*begin, tokens.numel()]
        assert [reader.counted for reader in readers] == [seen] * size
