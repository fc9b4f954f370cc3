"""The closed formula of step time, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from caat.planning.costs import flops_per_token
from caat.planning.prediction import Link, MessageCost, predict
from conf.model import ModelConfig
from conf.sync import WireFormat

# One layer of 4 channels, 2 processes, 10 tokens; a link of 8 bytes a second without delay.
TINY = ModelConfig(layers=1, hidden=4, ffn=6, heads=2, kv_heads=2, sequence=10, vocab_size=8)
COMPUTE = flops_per_token(TINY, 10) * 10 / 2 / 1e3


def step(mode: str, ratio: float, link: Link, processes: int = 2):
    return predict(TINY, 10, processes, mode, ratio, wire=WireFormat(2), flops_per_second=1e3, link=link)


def test_full_and_partial_wait_for_every_message():
    link = Link(rate=8.0)
    # A ring of two sends the whole message: 10 tokens of 4 channels of 2 bytes take 10 s, of 2 channels 5 s.
    assert step("none", 1.0, link).seconds == pytest.approx(COMPUTE)
    assert step("full", 1.0, link).exposed == pytest.approx(4 * 10 + 10)
    assert step("partial", 0.5, link).exposed == pytest.approx(4 * 5 + 10)
    assert step("partial", 0.0, link).exposed == pytest.approx(10)


def test_delay_counts_twice_a_ring_step():
    assert Link(8.0, 0.25).all_reduce_seconds(16, 2) == pytest.approx(2 * 0.25 + 2)
    assert Link(8.0, 0.25).all_reduce_seconds(16, 4) == pytest.approx(6 * 0.25 + 3)
    assert Link(8.0, 0.25).all_reduce_seconds(0, 4) == 0


def test_overlap_hides_what_arithmetic_lasts():
    # Two private channels, FLOPs of a process. Forward: attention-out then gate_up, 2·10·2·(2 + 6); down
    # then the head, 2·10·2·(3 + 4). Backward: 2·10·(2·6 + 4·6 + 2·2·2) and 2·10·(2·4 + 4·4 + 2·2·3).
    # The embedding's message hides behind the first weight gradient: 2·10·4·6.
    hidden = [0.32, 0.28, 0.88, 0.72]
    link = Link(rate=80.0)  # messages of 0.5 s, the embedding's of 1 s
    expected = sum(max(0.0, 0.5 - h) for h in hidden) + max(0.0, 1.0 - 0.48)
    assert step("overlap", 0.5, link).exposed == pytest.approx(expected)
    assert step("overlap", 0.5, Link(rate=1e9)).exposed == 0


def test_at_full_synchronisation_weight_gradients_are_what_hides():
    # Nothing is private. Backward, 2·10·4·6 of gate_up and 2·10·4·4 of the head; the embedding's as above.
    link = Link(rate=80.0)  # all messages of 1 s
    expected = 1.0 + 1.0 + (1.0 - 0.48) + (1.0 - 0.32) + (1.0 - 0.48)
    assert step("overlap", 1.0, link).exposed == pytest.approx(expected)
    assert step("full", 1.0, link).exposed == pytest.approx(5.0)


def test_one_process_sends_nothing():
    assert step("full", 1.0, Link(8.0), processes=1).exposed == 0


def test_a_ratio_without_messages_waits_for_no_delay():
    slow = Link(1e9, delay=100.0, cost=MessageCost(seconds=1.0))
    # Only the embedding's message is left.
    assert step("overlap", 0.0, slow).exposed == pytest.approx(1.0 + 200.0 - 0.48)


def test_messages_take_time_from_a_core():
    # 0.1 s a message, and a core that handles 160 bytes a second. Two processes send the whole message.
    cost = MessageCost(seconds=0.1, rate=160.0)
    slow, fast = Link(8.0, 0.25, cost), Link(800.0, 0.25, cost)
    # On a slow link the core keeps up with the wire; on a fast one it is what limits the message.
    assert slow.all_reduce_seconds(16, 2) == pytest.approx(0.1 + 0.5 + 2)
    assert fast.all_reduce_seconds(160, 2) == pytest.approx(0.1 + 1.0)
    assert fast.all_reduce_seconds(0, 2) == 0
    # Messages of 40 bytes, and one of 80, that arithmetic hides completely still take a core from it.
    hidden = Link(1e9, cost=MessageCost(seconds=0.01, rate=1000.0))
    assert step("overlap", 0.5, hidden).exposed == pytest.approx(4 * (0.01 + 0.04) + 0.01 + 0.08)
    assert step("overlap", 0.0, hidden).exposed == pytest.approx(0.01 + 0.08)
