"""All-reduces on a network: their rows on two processes, and the check of their sums."""

from __future__ import annotations

import torch.distributed as dist

from conf.bench import BenchCollectivesConfig
from eval.speed.collectives import _Sums, collective_rows


def measured() -> list[dict]:
    return collective_rows(BenchCollectivesConfig(topology="ring:2", size="40kb", rounds=2))


def sums_that_lack_a_rank() -> str:
    sums = _Sums(1000)
    sums.reset()
    try:
        sums.check("nothing")
    except ArithmeticError as error:
        dist.all_reduce(sums.data)
        sums.check("gloo")
        return str(error)
    return "passed"


def test_rows_are_those_of_the_slowest_rank(ranks):
    rows, others = ranks(2).run(measured)
    assert rows == others
    assert [row["mode"] for row in rows] == [
        "gloo",
        "ring",
        "two-way-ring",
        "double-binary-tree",
        "multitree",
    ]
    assert all(row["seconds"] > 0 and row["spread"] >= 0 for row in rows)


def test_a_sum_that_is_not_exact_is_an_error(ranks):
    assert ranks(2).run(sums_that_lack_a_rank) == [
        f"rank {rank}: nothing does not give the exact sum" for rank in range(2)
    ]
