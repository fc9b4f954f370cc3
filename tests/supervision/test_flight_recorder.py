"""Who has not entered a collective, by records that torch's flight recorder makes of real process groups."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from caat.supervision.flight_recorder import absent, latest
from caat.supervision.watchdog import diagnosis

ROOT = Path(__file__).parents[2]
# Three processes queue sums without waiting for them, as with NCCL: no stack shows a collective. In "late",
# rank 1 leaves out the last sum of the world; in "other", rank 2 waits for rank 0, which waits for rank 1 in
# a group of two.
CODE = """
import sys, time
import torch
import torch.distributed as dist
from caat.supervision.device import side_store, start_process_group
from caat.supervision.flight_recorder import remember_collectives
from caat.supervision.watchdog import Watchdog
remember_collectives()
start_process_group(torch.device("cpu"))
rank = dist.get_rank()
pair = dist.new_group([0, 1])
everyone = [torch.ones(4) for _ in range(4)]
works = [dist.all_reduce(x, async_op=True) for x in everyone[:3]]
if rank < 2:
    works.append(dist.all_reduce(torch.ones(2), group=pair, async_op=True))
for work in works:
    work.wait()
watching = Watchdog(side_store(), rank, 3, 2)
watching.beat("training step 7")
works = []
if CASE == "late" and rank != 1:
    works.append(dist.all_reduce(everyone[3], async_op=True))
if CASE == "other":
    if rank == 2:
        works.append(dist.all_reduce(everyone[3], async_op=True))
    if rank == 0:
        works.append(dist.all_reduce(torch.ones(2), group=pair, async_op=True))
time.sleep(60)
"""


@pytest.mark.parametrize("case", [pytest.param("late", marks=pytest.mark.slow), "other"])
def test_the_rank_that_did_not_enter_is_named(tmp_path, case):
    script = tmp_path / "job.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\nCASE = {case!r}\n{CODE}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command = [sys.executable, *launcher, str(script)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    line = next(line for line in ended.stderr.splitlines() if line.startswith("caat: error"))
    assert "rank 1 hangs while training step 7" in line
    assert re.search(
        rf"\(it did not enter gloo:all_reduce number \d+ of group {int(case == 'other')}\)", line
    )
    for rank in (0, 2):
        assert f"rank {rank} waits in gloo:all_reduce while training step 7" in line


def last(number: int, waits: bool) -> dict:
    return {"number": number, "name": "nccl:all_reduce", "waits": waits}


def test_ranks_that_wait_for_each_other_are_not_blamed():
    """Rank 0 waits in one group for rank 1, which waits in another one for rank 0."""
    by_rank = {
        0: {"0": last(5, True), "1": last(2, False)},
        1: {"0": last(4, False), "1": last(3, True)},
    }
    assert absent(by_rank) == {}
    reports = {
        rank: {"beats": 3, "doing": "training", "at": "caat/x.py:1 (f)", "collective": "", "entered": groups}
        for rank, groups in by_rank.items()
    }
    assert "all ranks wait for each other" in diagnosis(reports, 2, 60, {})


def test_the_latest_collective_of_each_group_counts():
    """In the format of NCCL's records, whose state follows the GPU."""
    common = {"is_p2p": False, "retired": False, "profiling_name": "nccl:all_reduce"}
    entries = [
        {**common, "process_group": ["0", "default_pg"], "collective_seq_id": 1, "state": "completed"},
        {**common, "process_group": ["0", "default_pg"], "collective_seq_id": 2, "state": "started"},
        {**common, "process_group": ["3", "undefined"], "collective_seq_id": 9, "state": "scheduled"},
        {**common, "process_group": ["3", "undefined"], "collective_seq_id": 9, "state": "completed"},
        {**common, "process_group": ["3", "undefined"], "collective_seq_id": 10, "state": "started"}
        | {"is_p2p": True},
    ]
    assert latest(entries) == {"0": last(2, True), "3": last(9, False)}
