"""What is computed while sums are on their way, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import enter
from caat.parallel.sums import SumOptions
from layers.linear import RowParallelLinear
from tests.models import SMALL, batch, build

GEMMS = ("mm", "addmm_", "bmm", "baddbmm", "addmm")


class Journal(TorchDispatchMode):
    """GEMMs and copies, between the starts and the ends of sums, in the order of the process."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.entries.append(function._opname)
        return function(*args, **(kwargs or {}))

    def between(self, direction: str) -> list[list[str]]:
        """What happened during each sum of the layers, in order."""
        found, inside = [], None
        for entry in self.entries:
            if entry == f"start {direction}":
                inside = []
            elif entry == "wait" and inside is not None:
                found.append(inside)
                inside = None
            elif inside is not None:
                inside.append(entry)
        return found


def write_down(collectives: Collectives, journal: Journal) -> None:
    start = collectives.start_sum

    def noted(x, direction, purpose):
        wait = start(x, direction, purpose)
        if purpose != "sync":
            return wait
        journal.entries.append(f"start {direction}")
        return lambda: (journal.entries.append("wait"), wait())

    collectives.start_sum = noted  # type: ignore[method-assign]


def hidden_work(ratio: float):
    mesh = Mesh.create(2, 2)
    model = build(mesh, ratio)
    journal = Journal()
    write_down(mesh.tensor, journal)
    tokens, targets = batch()
    with journal:
        model(tokens, targets).mean().backward()
    return journal.between("forward"), journal.between("backward")


def test_private_arithmetic_hides_every_sum(ranks):
    forward, backward = ranks(2).run(hidden_work, 0.5)[0]
    assert len(forward) == len(backward) == 2 * SMALL.layers
    for during in forward:
        # The private outputs of this row-parallel GEMM, the private inputs of the column-parallel one.
        assert [op for op in during if op in GEMMS] == ["baddbmm", "mm"]
    for during in backward:
        # Of the column: private input gradient, weight gradient. Of the row: both private gradients.
        assert [op for op in during if op in GEMMS] == ["mm", "mm", "baddbmm", "baddbmm"]


def copies(ratio: float):
    mesh = Mesh.create(2, 2)
    model = build(mesh, ratio)
    tokens, _ = batch()
    embedded = model.embedding(tokens).detach().requires_grad_()
    stream = enter(embedded, model.shared_channels, mesh)
    row, column = model.blocks[0].mlp.down, model.blocks[1].attention.qkv
    a = torch.randn(*tokens.shape, row.weight.shape[1], dtype=row.weight.dtype)
    gamma = torch.ones(SMALL.hidden, dtype=row.weight.dtype)
    journal = Journal()
    with journal:
        _, y = column.after_norm(model.norm(row.before_norm(a, stream), gamma))
        y.square().sum().backward()
    return [op for op in journal.entries if op in ("clone", "cat", "copy_", "_to_copy", "contiguous")]


def test_one_copy_per_synchronisation(ranks):
    """Backward, the message is a copy: the gradient itself goes on along the residual.

    The concatenations are the input of one weight gradient, faster than two of half the width, and the
    message where the stream begins.
    """
    assert ranks(2).run(copies, 0.5)[0] == ["clone", "cat", "cat"]


def gradients(options: SumOptions, processes: int, checkpointing: str, dtype: torch.dtype, ratio: float):
    mesh = Mesh.create(4, processes, options)
    model = build(mesh, ratio, checkpointing, dtype=dtype)
    tokens, targets = batch()
    loss = model(tokens, targets).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("checkpointing", "processes", "dtype", "ratio", "sent"),
    [
        ("none", 2, torch.float32, 0.5, None),
        ("selective", 2, torch.float32, 0.5, None),
        ("full", 2, torch.float32, 1.0, None),
        ("none", 4, torch.bfloat16, 1.0, None),
        ("full", 4, torch.bfloat16, 0.5, None),
        ("none", 2, torch.bfloat16, 0.5, torch.int8),
        ("full", 4, torch.float32, 1.0, torch.int8),
    ],
)
def test_overlap_changes_no_bit(ranks, checkpointing, processes, dtype, ratio, sent):
    """Four processes in bfloat16: their sums are made in a thread, since two would need no wider type."""
    pool = ranks(processes)
    model = processes, checkpointing, dtype, ratio
    for on, off in zip(
        pool.run(gradients, SumOptions(sent, overlap=True), *model),
        pool.run(gradients, SumOptions(sent, overlap=False), *model),
        strict=True,
    ):
        assert torch.equal(on[0], off[0])
        assert all(torch.equal(gradient, off[1][name]) for name, gradient in on[1].items())


@pytest.mark.parametrize(
    ("checkpointing", "processes", "ratio"), [("none", 2, 1.0), ("full", 2, 0.5), ("selective", 4, 1.0)]
)
def test_halves_of_a_batch_compute_the_same(ranks, checkpointing, processes, ratio):
    pool = ranks(processes)
    model = processes, checkpointing, torch.float64, ratio
    for halves, whole in zip(
        pool.run(gradients, SumOptions(halves=True), *model),
        pool.run(gradients, SumOptions(), *model),
        strict=True,
    ):
        torch.testing.assert_close(halves[0], whole[0], rtol=0, atol=1e-12)
        for name, gradient in halves[1].items():
            torch.testing.assert_close(gradient, whole[1][name], rtol=0, atol=1e-10)


def order_of_sums(halves: bool) -> list[str]:
    """When sums start and are waited for in a forward and backward pass, by number."""
    mesh = Mesh.create(2, 2, SumOptions(halves=halves))
    events, start = [], mesh.tensor.start_sum

    def noted(x, direction, purpose):
        number = len([event for event in events if event.startswith("start")])
        events.append(f"start {number}")
        wait = start(x, direction, purpose)

        def waited():
            events.append(f"wait {number}")
            wait()

        return waited

    mesh.tensor.start_sum = noted
    model = build(mesh, 1.0)
    model(*batch()).mean().backward()
    return events


def test_each_half_computes_while_a_sum_of_the_other_is_in_flight(ranks):
    """With halves, the next sum starts before the last one is waited for; without, it cannot at ratio 1."""

    def in_flight(events: list[str]) -> int:
        flying = most = 0
        for event in events:
            flying += 1 if event.startswith("start") else -1
            most = max(most, flying)
        return most

    assert in_flight(ranks(2).run(order_of_sums, False)[0]) == 1
    events = ranks(2).run(order_of_sums, True)[0]
    assert in_flight(events) == 2
    # Two layers of two sums, both directions, both halves; the entry's two besides.
    starts = [event for event in events if event.startswith("start")]
    assert len(starts) == 2 * (2 * 2 * 2) + 2
    behind = sum(
        event.startswith("wait")
        and any(later == f"start {int(event.split()[1]) + 1}" for later in events[:at])
        for at, event in enumerate(events)
    )
    assert behind >= len(starts) - 3


def gradient_of_a_view(options: SumOptions, dtype: torch.dtype):
    mesh = Mesh.create(4, 4, options)
    x = torch.ones(3, 8, dtype=dtype, requires_grad=True) * 1
    view = x.view(-1)
    before = view.grad_fn.name()
    mesh.tensor.start_sum(x.detach(), "forward", "sync")()
    return before, view.grad_fn.name(), x[0, 0].item()


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (SumOptions(), torch.float32),
        (SumOptions(), torch.bfloat16),
        (SumOptions(wire_dtype=torch.bfloat16), torch.float32),
        (SumOptions(wire_dtype=torch.int8), torch.float32),
    ],
    ids=["all-reduce", "by slices", "narrower", "int8"],
)
def test_autograd_does_not_see_a_sum(ranks, options, dtype):
    """It writes where views already are: autograd would make copies of their gradients, at the wrong time."""
    for before, after, value in ranks(4).run(gradient_of_a_view, options, dtype):
        assert value == 4
        assert after == before


def read_twice():
    mesh = Mesh.create(2, 2)
    row = RowParallelLinear(8, 12, mesh, 0.5)
    x = enter(torch.randn(3, 12, requires_grad=True), 6, mesh)
    arriving = row.before_norm(torch.randn(3, 4), x)
    total = arriving.settled().stack().sum() + arriving.settled().stack().sum()
    try:
        total.backward()
    except AssertionError as error:
        return str(error)
    return "nothing was said"


def test_reading_an_arriving_stream_twice_is_refused(ranks):
    assert all("read twice" in said for said in ranks(2).run(read_twice))


def saved_bytes(ratio: float) -> int:
    """Memory that the backward pass of one shard waits for, by storage, without the parameters."""
    model = build(Mesh.create(2, 2), ratio, dtype=torch.float32)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens, targets = batch()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(tokens, targets).mean()
    return sum(storages.values())


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.25, 0.0])
def test_no_more_activations_than_full_synchronisation(ranks, ratio):
    pool = ranks(2)
    assert pool.run(saved_bytes, ratio)[0] <= pool.run(saved_bytes, 1.0)[0]
