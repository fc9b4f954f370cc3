"""The fastest schedule of a network, and the chunks of schedules in a buffer of slices."""

from __future__ import annotations

import pytest

from caat.topology.check import check_schedule
from caat.topology.choose import PIECE, QUEUED, best_schedule, pieces
from caat.topology.chunks import owned_chunks, owners, sent_numbers
from caat.topology.methods import METHODS, make_schedule
from caat.topology.read import topology
from caat.topology.schedule import Move, Schedule
from caat.topology.simulate import seconds
from tests.topology.networks import unit


def test_large_messages_take_the_schedule_with_the_bandwidth_and_small_ones_that_with_few_steps():
    # 10 MB/s. Each of 4 nodes sends 6/4 of the bytes over its two links at once. Where all are connected, a
    # chunk of any node is summed in one step and copied in another, of 1 s each.
    assert best_schedule(topology("ring:4", 1e7, 0.0), "all-reduce", 4e7).seconds == pytest.approx(3.0)
    assert best_schedule(topology("full:8", 1e7, 1.0), "all-reduce", 8).seconds == pytest.approx(2.0)
    assert best_schedule(topology("mesh:2x2", 1e7, 0.0), "all-gather", 4e7).method == "two-way-ring"
    slow = best_schedule(topology("mesh:4x4", 1e7, 1.0), "all-reduce", 16)
    assert slow.method == "multitree" and slow.schedule.steps < make_schedule(unit("mesh:4x4"), "ring").steps


def test_no_method_is_faster_than_the_chosen_one_and_the_collective_is_kept():
    network = topology("torus:3x4", 1e7, 1e-3)
    for collective in ("all-reduce", "reduce-scatter", "all-gather"):
        best = best_schedule(network, collective, 3e6)
        check_schedule(best.schedule, collective)
        for method in METHODS:
            other = make_schedule(network, method, collective)
            assert best.seconds <= seconds(other, network, 3e6, pieces(other, 3e6)), (collective, method)


def test_pieces_are_of_about_one_size_up_to_a_number_on_a_link():
    schedule = make_schedule(unit("full:4"), "multitree")
    assert schedule.chunks == 4 and len(schedule.moves) == 2 * len(schedule.links)
    for chunk, count in ((0, 1), (PIECE, 1), (PIECE + 1, 2), (7 * PIECE, 7), (10**12, QUEUED // 2)):
        assert pieces(schedule, 4 * chunk) == count, chunk
    # Around a ring of 64, a link sends 126 chunks: they fill it without being cut.
    assert pieces(make_schedule(unit("ring:64"), "ring"), 10**12) == 1


@pytest.mark.parametrize("method", METHODS)
def test_halves_of_an_all_reduce_meet_at_the_owners(method):
    whole = make_schedule(unit("mesh:2x3"), method)
    sums, copies = whole.half("reduce-scatter"), whole.half("all-gather")
    assert owners(sums) == owners(copies)
    assert len(sums.moves) + len(copies.moves) == len(whole.moves)


def test_slices_are_cut_by_hand():
    # Node 0 owns chunks 1 and 2, node 1 owns chunk 0.
    moves = [Move(1, 0, 1, 0, True), Move(1, 1, 0, 1, True), Move(2, 1, 0, 2, True)]
    schedule = Schedule.of(2, 3, moves)
    assert owners(schedule) == [1, 0, 0]
    ranges = owned_chunks(schedule, [5, 2])
    assert ranges == [(5, 7), (0, 2), (2, 5)]
    assert sent_numbers(schedule, ranges) == {0: 2, 1: 5}
