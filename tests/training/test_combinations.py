"""Every three settings train together, as one plain process in float64 does."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch

from caat.parallel.sums import SumOptions
from tests.models import SMALL
from tests.training.test_engine import check, train

SETTINGS = {
    "processes": (1, 2, 4),
    "ratio": (0.5, 1.0, 0.0),
    "stage": (0, 1, 2, 3),
    "precision": ("fp32", "bf16"),
    "checkpointing": ("none", "selective", "full"),
    "overlap": (True, False, "halves"),
    "wire_dtype": (None, torch.bfloat16, torch.float32),
}
# With 8 shards and ratio 0, rounding the weights to float32 already changes the norm by 2e-6 of it.
WORLD, SHARDS = 4, 4


def triples(case: tuple) -> set[tuple]:
    return set(combinations(enumerate(case), 3))


def covering() -> list[tuple]:
    """Few cases with any values of any three settings: the one with most new ones, again and again."""
    every = {case: triples(case) for case in product(*SETTINGS.values())}
    missing = set().union(*every.values())
    chosen = []
    while missing:
        chosen.append(max(every, key=lambda case: len(every[case] & missing)))
        missing -= every[chosen[-1]]
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("case", covering(), ids=lambda case: "-".join(map(str, case)).replace("torch.", ""))
def test_as_one_plain_process(ranks, case):
    processes, ratio, stage, precision, checkpointing, overlap, wire_dtype = case
    options = SumOptions(wire_dtype, overlap=bool(overlap), halves=overlap == "halves")
    how = (SHARDS, processes, ratio, stage, precision, checkpointing, options)
    by_rank = ranks(WORLD).run(train, SMALL, *how)
    sent = wire_dtype if processes > 1 else None
    check(by_rank, SMALL, SHARDS, ratio, WORLD // processes, str(case), precision, sent)
