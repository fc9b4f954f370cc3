"""Rows share forward passes by length, and less of them when memory runs out."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from eval.generation.batches import Batches

LENGTHS = [5, 100, 7, 30, 30, 1, 64]


def run(batches: Batches, room: int | None = None) -> list[list[int]]:
    """The rows of each pass, of which one of more than ``room`` tokens finds no memory."""
    passes = []

    def work(rows: list[int]) -> list[int]:
        if room is not None and len(rows) * LENGTHS[rows[0]] > room:
            raise torch.OutOfMemoryError("no memory")
        passes.append(rows)
        return [row * 10 for row in rows]

    assert batches.run(LENGTHS, work) == [row * 10 for row in range(len(LENGTHS))]
    return passes


def test_longest_first_within_the_tokens():
    assert run(Batches(Mesh(1), 0, 128)) == [[1], [6, 3], [4, 2, 0, 5]]


def test_a_row_longer_than_all_tokens_runs_alone():
    assert run(Batches(Mesh(1), 0, 20))[0] == [1]


def test_a_given_size():
    assert run(Batches(Mesh(1), 3, 1)) == [[1, 6, 3], [4, 2, 0], [5]]


def test_out_of_memory_halves_the_batch():
    batches = Batches(Mesh(1), 0, 1000)
    passes = run(batches, 220)
    assert passes[0] == [1] or len(passes[0]) * 100 <= 220
    assert batches.tokens < 1000
    assert run(Batches(Mesh(1), 4, 0), 150)[0] == [1]


@pytest.mark.parametrize(
    "batches",
    [Batches(Mesh(1), 1, 0), Batches(Mesh(2, processes=2), 0, 1000), Batches(Mesh(1), 0, 1000, alone=False)],
)
def test_out_of_memory_where_nothing_helps(batches):
    with pytest.raises(MemoryError, match="give a smaller batch"):
        batches.run(LENGTHS, lambda rows: (_ for _ in ()).throw(torch.OutOfMemoryError()))


def test_progress():
    seen = []
    batches = Batches(Mesh(1), 3, 1, lambda done, total: seen.append((done, total)))
    run(batches)
    assert seen == [(3, 7), (6, 7), (7, 7)]


def share(size: int) -> tuple[list[int], list[int]]:
    """Results on this rank, and the rows that it worked on."""
    mesh, mine = Mesh.create(2, 1), []

    def work(rows: list[int]) -> list[int]:
        mine.extend(rows)
        return [row * 10 for row in rows]

    return Batches(mesh, size, 1).run(LENGTHS, work), mine


def test_replicas_share_the_rows(ranks):
    (first, some), (second, others) = ranks(2).run(share, 2)
    assert first == second == [row * 10 for row in range(len(LENGTHS))]
    assert sorted(some + others) == list(range(len(LENGTHS))) and abs(len(some) - len(others)) <= 1
