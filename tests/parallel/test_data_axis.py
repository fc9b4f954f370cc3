"""The process group given to DeepSpeed: what it sends is the plain group's, what it counts is right."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import AllgatherOptions, ReduceScatterOptions

from caat.parallel.mesh import Mesh

# By hand, for 6 and 4 numbers of float32 on 2 ranks: (direction, purpose) -> calls, bytes that a rank sends.
# An all-reduce sends each half of its 24 bytes twice, and so does the reduce-scatter that is left to gloo.
COUNTED = {
    ("backward", "gradients"): (6, 3 * 24 + 3 * 12),
    ("step", "weights"): (4, 4 * 16),
    ("step", "control"): (1, 24),
    ("forward", "loss"): (1, 4),
}
# Names of torch before 2.13, which has both, and from 2.13 on.
REDUCE_SCATTERS = ("_reduce_scatter_base", "reduce_scatter_single")
ALL_GATHERS = ("_allgather_base", "all_gather_single")
COALESCED = ("allgather_into_tensor_coalesced", "all_gather_single_coalesced")


def collectives(mesh: Mesh, group) -> list[torch.Tensor]:
    """Every collective of DeepSpeed's through ``group``, each begun before the one before is waited for."""
    rank, works = dist.get_rank(), []
    reduced = [torch.arange(6.0) + 10 * rank for _ in range(6)]
    with mesh.data.during("backward"):
        works.append(dist.all_reduce(reduced[0], group=group, async_op=True))
        works.append(dist.all_reduce(reduced[1], dist.ReduceOp.MAX, group=group, async_op=True))
        scattered = [torch.empty(3) for _ in range(4)]
        works.append(dist.reduce_scatter(scattered[0], list(reduced[2].chunk(2)), group=group, async_op=True))
        works.append(dist.reduce_scatter_tensor(scattered[1], reduced[3], group=group, async_op=True))
        for out, message, name in zip(scattered[2:], reduced[4:], REDUCE_SCATTERS, strict=True):
            call = getattr(group, name, None) or group._reduce_scatter_base
            works.append(call(out, message, ReduceScatterOptions()))
    gathered, own = [torch.empty(8) for _ in range(4)], torch.arange(4.0) - rank
    works.append(dist.all_gather(list(gathered[0].chunk(2)), own, group=group, async_op=True))
    for out, name in zip(gathered[1:3], ALL_GATHERS, strict=True):
        call = getattr(group, name, None) or group._allgather_base
        works.append(call(out, own, AllgatherOptions()))
    name = next(name for name in COALESCED if hasattr(group, name))
    works.append(getattr(group, name)([gathered[3]], [own], AllgatherOptions()))
    works.append(dist.all_reduce(norm := torch.ones(6), group=group, async_op=True))
    assert all(isinstance(work, dist.Work) for work in works)
    for work in works:
        work.wait()
    dist.barrier(group)
    return [*reduced[:2], *scattered, *gathered, norm]


def counted():
    mesh = Mesh.create(1, 1)
    plain = collectives(mesh, mesh.data.group)
    assert not mesh.data.ledger.calls
    ours = collectives(mesh, mesh.data.process_group)
    mesh.data.all_reduce(torch.ones(1), "forward", "loss")
    rank, size = dist.get_rank(mesh.data.process_group), dist.get_world_size(mesh.data.process_group)
    objects = mesh.data.gather_objects({"rank": rank})
    ledger = mesh.data.ledger
    results = ledger.calls.pop(("step", "results")), ledger.sent.pop(("step", "results"))
    return (
        plain,
        ours,
        {key: (n, ledger.sent[key]) for key, n in ledger.calls.items()},
        size,
        objects,
        results,
    )


def test_messages_are_the_plain_groups_and_are_counted(ranks):
    for plain, ours, counts, size, objects, results in ranks(2).run(counted):
        assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
        assert counts == COUNTED
        assert size == 2 and objects == [{"rank": 0}, {"rank": 1}]
        assert results[0] == 1 and results[1] > 4


def alone():
    mesh = Mesh.create(2, 2)
    total = mesh.data.all_reduce(torch.ones(2), "forward", "loss")
    assert mesh.data.gather_objects(3) == [3]
    dist.all_reduce(total, group=mesh.data.process_group)
    return total.tolist(), mesh.data_size, dict(mesh.data.ledger.calls)


def test_one_replica_sends_and_counts_nothing(ranks):
    assert ranks(2).run(alone) == [([1.0, 1.0], 1, {})] * 2
