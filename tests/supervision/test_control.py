"""Ranks agree on numbers and objects."""

from __future__ import annotations

from caat.supervision.control import Control


def agree():
    control = Control()
    return control.maximum(control.rank, 5 - control.rank), control.gather({"rank": control.rank})


def test_all_ranks_agree(ranks):
    for maximum, gathered in ranks(4).run(agree):
        assert maximum == [3, 5]
        assert gathered == [{"rank": i} for i in range(4)]
