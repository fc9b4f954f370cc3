"""Which ranks have not entered a collective that others wait in, by torch's flight recorder.

With NCCL a collective only queues work for the GPU, so the stack of a waiting process does not show it: the
process may stand in any later call that needs the result. The flight recorder notes each collective that a
process enters, with its number in its group, and whether it has completed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TypedDict

import torch.distributed as dist
from torch._C import _distributed_c10d

# Collectives that each process remembers. The first name is that of newer versions of torch.
BUFFERS = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
REMEMBERED = 2000
# NCCL's records, and those of other backends. The JSON dumps hold plain values; the others are pickled.
DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")


class Last(TypedDict):
    """The latest collective of a group that a process has entered, and its number in the group."""

    number: int
    name: str
    waits: bool


# By name of the group.
Entered = Mapping[str, Last]


def remember_collectives() -> None:
    """Switch the recorder on, unless the user has set its size. To be called before a group is created."""
    for name in BUFFERS:
        os.environ.setdefault(name, str(REMEMBERED))


def entered() -> Entered:
    """Return the latest collective of each group that this process has entered; empty without a recorder."""
    if not dist.is_initialized():
        return {}
    last: dict[str, Last] = {}
    for dump in (getattr(_distributed_c10d, name, None) for name in DUMPS):
        if dump is not None:
            last |= latest(json.loads(dump(True, False)).get("entries", []))
    return last


def latest(entries: list[dict]) -> Entered:
    """Return the latest of the recorded collectives ``entries`` in each group."""
    last: dict[str, Last] = {}
    for entry in entries:
        group, number = entry["process_group"][0], entry["collective_seq_id"]
        if not entry["is_p2p"] and number >= last.get(group, {"number": 0})["number"]:
            waits = not (entry["retired"] or entry["state"] == "completed")
            last[group] = {"number": number, "name": entry["profiling_name"], "waits": waits}
    return last


def absent(by_rank: Mapping[int, Entered]) -> dict[int, str]:
    """Return the ranks that have not entered a collective in which others wait, with the name of it.

    A rank that waits in another collective itself is not among them: it is not the cause. A rank that never
    used a group is not known to belong to it.
    """
    missing: dict[int, str] = {}
    waiting = {rank for rank, groups in by_rank.items() if any(last["waits"] for last in groups.values())}
    for group in sorted({group for groups in by_rank.values() for group in groups}):
        of_group = {rank: groups[group] for rank, groups in by_rank.items() if group in groups}
        waits = {rank: last for rank, last in of_group.items() if last["waits"]}
        if not waits:
            continue
        furthest = max(waits.values(), key=lambda last: last["number"])
        for rank, last in of_group.items():
            if last["number"] < furthest["number"] and rank not in waiting:
                missing[rank] = f"{furthest['name']} number {furthest['number']} of group {group}"
    return missing


def waits_in(groups: Entered) -> str:
    """Return the names of the collectives that a rank waits in, or an empty string."""
    return ", ".join(sorted({last["name"] for last in groups.values() if last["waits"]}))
