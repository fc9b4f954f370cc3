"""The watchdog's verdict: which rank hangs, from what each of them reports."""

from __future__ import annotations

import sys

from caat.supervision.watchdog import diagnosis, where


def report(beats: int, doing: str, collective: str = "") -> dict:
    return {"beats": beats, "doing": doing, "at": "caat/x.py:1 (f)", "collective": collective}


def test_who_hangs_is_who_is_behind():
    text = diagnosis({0: report(9, "training step 3", "all_reduce"), 1: report(8, "reading")}, 2, 60, {})
    assert "no progress for 60 s; rank 1 hangs while reading, in caat/x.py:1 (f)" in text
    assert "rank 0 waits in all_reduce while training step 3" in text


def test_who_hangs_is_who_is_in_no_collective():
    reports = {0: report(9, "training", "all_reduce"), 1: report(9, "training")}
    assert "rank 1 hangs while training" in diagnosis(reports, 2, 60, {})


def test_who_says_nothing_is_frozen():
    text = diagnosis(
        {0: report(9, "training", "all_reduce"), 2: report(9, "training", "all_reduce")}, 3, 60, {}
    )
    assert "rank 1 does not answer" in text and "rank 2 waits" in text


def test_who_says_nothing_on_another_host_may_be_cut_off():
    text = diagnosis({0: report(9, "training", "all_reduce")}, 2, 60, {0: "here", 1: "there"})
    assert "rank 1 on there does not answer: frozen, or the network to it is down" in text
    assert "rank 0 on here waits in all_reduce" in text


def test_when_all_wait_nobody_is_blamed():
    reports = {rank: report(9, "training", "all_reduce") for rank in range(2)}
    assert "all ranks wait for each other" in diagnosis(reports, 2, 60, {})


def test_where_a_stack_is():
    assert where(None) == {"at": "unknown", "collective": ""}
    assert where(sys._getframe())["collective"] == ""
