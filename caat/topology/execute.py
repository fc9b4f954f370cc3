"""Run a schedule on the tensors of a process group."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

from caat.topology.chunks import Ranges, equal_chunks
from caat.topology.queues import Queues
from caat.topology.schedule import Schedule


def execute(
    schedule: Schedule,
    data: Tensor,
    group: dist.ProcessGroup | None = None,
    pieces: int = 1,
    ranges: Ranges | None = None,
) -> None:
    """Run the schedule on ``data`` [n], contiguous and of the same size on all ranks, in place. Collective.

    Node r of the schedule is rank r of ``group``. The contributions to a chunk are added in the order of
    steps, and then of nodes, and the sum is copied: every run gives the same bits on all ranks. On gloo, each
    link has a queue of its own, in which a chunk is sent in ``pieces``; other backends get each step as one
    batch. The memory of the messages that this rank adds, about as much as ``data``, comes on top. ``ranges``
    are those of the chunks in ``data``; by default, chunks are equal.
    """
    assert data.dim() == 1 and data.is_contiguous()
    assert schedule.nodes == dist.get_world_size(group), f"{schedule.nodes} nodes, another number of ranks"
    ranges = ranges or equal_chunks(data.numel(), schedule.chunks)
    if dist.get_backend(group) == dist.Backend.GLOO:
        Queues(schedule, data.detach(), ranges, group, pieces).run()
    else:
        execute_in_batches(schedule, data.detach(), ranges, group)


@torch.no_grad()
def execute_in_batches(
    schedule: Schedule, data: Tensor, ranges: Ranges, group: dist.ProcessGroup | None = None
) -> None:
    """Like :func:`execute`, with the messages of this rank in a step as one batch, which NCCL overlaps.

    The next step begins when those are complete. There is no barrier with other ranks.
    """
    rank = dist.get_rank(group)
    mine = [(tag, move) for tag, move in enumerate(schedule.moves) if rank in (move.source, move.target)]
    for _, step in groupby(mine, key=lambda each: each[1].step):
        receives, sends, sums = [], [], []
        for tag, move in step:
            view = data[slice(*ranges[move.chunk])]
            if not view.numel():
                continue
            if move.source == rank:
                sends.append(dist.P2POp(dist.isend, view, group=group, group_peer=move.target, tag=tag))
                continue
            into = torch.empty_like(view) if move.reduce else view
            receives.append(dist.P2POp(dist.irecv, into, group=group, group_peer=move.source, tag=tag))
            if move.reduce:
                sums.append((view, into))
        # Receives first: gloo announces them on the connection that carries the data, behind earlier sends.
        for work in dist.batch_isend_irecv(receives + sends) if receives or sends else []:
            work.wait()
        for view, into in sums:
            view += into
