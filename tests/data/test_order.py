"""The shuffled order is a permutation, differs between seeds and never changes for a given seed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from caat.data.order import Permutation, mix


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 100, 1000, 4097])
def test_every_number_comes_once(n):
    for seed in range(3):
        order = Permutation(n, seed)
        assert sorted(order[i] for i in range(n)) == list(range(n))


def test_seeds_differ_and_shuffle():
    orders = [[Permutation(1000, seed)[i] for i in range(1000)] for seed in range(5)]
    assert len({tuple(order) for order in orders}) == 5
    for order in orders:
        # On average, a random permutation has one fixed point and ascends at half of its positions.
        assert sum(i == value for i, value in enumerate(order)) < 8
        assert 420 < sum(a < b for a, b in pairwise(order)) < 580


def test_all_orders_of_three_are_reached():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        order = tuple(Permutation(3, seed)[i] for i in range(3))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 120


def test_huge_orders_cost_nothing_to_set_up():
    order = Permutation(10**15, seed=3)
    drawn = {order[i] for i in range(1000)}
    assert len(drawn) == 1000 and all(0 <= value < 10**15 for value in drawn)


def test_outside_is_an_index_error():
    with pytest.raises(IndexError):
        Permutation(10, 0)[10]


def test_the_order_never_changes():
    """The position in a checkpoint is only valid with the order that it was written with."""
    assert [Permutation(10, 1)[i] for i in range(10)] == [5, 3, 9, 8, 0, 4, 2, 1, 7, 6]
    assert mix(1, 2) == 13608149317741381227
