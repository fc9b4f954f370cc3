"""The model on a GPU: the oracles, and sums in flight that must not change a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from caat.compression import make_codec
from caat.parallel import int8
from caat.parallel.collectives import Collectives
from caat.parallel.mesh import Mesh
from caat.parallel.sums import SumOptions
from caat.supervision.device import start_process_group
from conf.model import ModelConfig
from layers.gpt import GPT
from layers.weights import initial_weights
from tests.layers.test_documents import BORDERS
from tests.models import SMALL, batch, build

DEVICE = "cuda"
# Large enough that a GEMM takes longer than its launch.
WIDE = ModelConfig(
    layers=4, hidden=512, ffn=1408, heads=8, kv_heads=8, sequence=256, vocab_size=4096, norm_eps=1e-5
)
# 25 ms on an H100: much longer than the work that should hide a sum.
LATE_CYCLES = 50_000_000


@pytest.fixture(scope="module")
def group():
    """NCCL with one process: its collectives run on streams of their own, as with several."""
    if not dist.is_initialized():
        start_process_group(torch.device(DEVICE, 0))
    yield dist.group.WORLD
    dist.destroy_process_group()


class LateSums(Collectives):
    """Two equal processes: every sum doubles the message, on another stream, after ``cycles`` of the GPU."""

    cycles = 0

    def start_sum(self, x, direction, purpose):
        x, stream = x.data, torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if self.cycles:
                torch.cuda._sleep(self.cycles)
            x.mul_(2)
        x.record_stream(stream)
        if self.cycles:
            return lambda: torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.current_stream().wait_stream(stream)
        return lambda: None


def loss_and_gradients(mesh: Mesh, ratio: float, checkpointing: str = "none") -> list[torch.Tensor]:
    model = GPT.empty(WIDE, mesh, ratio, 1.0, checkpointing, device=DEVICE, dtype=torch.bfloat16)
    model.fill(initial_weights(WIDE, 1)).train()
    vocabulary = WIDE.vocab_size // mesh.processes
    text = torch.randint(vocabulary, (2, 257), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    loss = model(text[:, :-1], text[:, 1:])
    loss.mean().backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def check_same_bits(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.isfinite(one).all() and torch.equal(one, other), index


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_late_sum_changes_no_bit(group, ratio, checkpointing):
    prompt, late = LateSums(2, group), LateSums(2, group)
    late.cycles = LATE_CYCLES
    check_same_bits(
        loss_and_gradients(Mesh(2, 2, tensor=late), ratio, checkpointing),
        loss_and_gradients(Mesh(2, 2, tensor=prompt), ratio, checkpointing),
    )


@pytest.mark.parametrize("wire_dtype", [None, torch.float32, torch.int8], ids=str)
def test_overlap_changes_no_bit_on_nccl(group, wire_dtype):
    by_overlap = []
    for overlap in (True, False):
        # The mesh has 8 processes and the group only this one: a sum by slices or an all-reduce is the
        # message itself, but it takes NCCL's way through streams.
        collectives = Collectives(8, group, SumOptions(wire_dtype, overlap=overlap))
        by_overlap.append(loss_and_gradients(Mesh(8, 8, tensor=collectives), 0.5))
    check_same_bits(*by_overlap)


@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)], ids=str
)
def test_as_in_float64_on_the_cpu(shards, ratio, compiled, dtype, tolerance):
    check_as_on_the_cpu(SMALL, shards, ratio, compiled=compiled, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "changes",
    [{"attention_bias": True}, {"qk_norm": True, "head_dim": 16}, {"tie_embeddings": True}],
    ids=["biases", "norms", "tied"],
)
def test_families_as_in_float64_on_the_cpu(shards, compiled, changes):
    config = replace(SMALL, **changes)
    check_as_on_the_cpu(config, shards, 0.5, compiled=compiled, dtype=torch.bfloat16, tolerance=5e-2)


def check_as_on_the_cpu(
    config: ModelConfig, shards: int, ratio: float, *, compiled: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch._dynamo.reset()
    mesh = Mesh(shards)
    exact = build(mesh, ratio, config=config)
    model = build(mesh, ratio, dtype=dtype, config=config).to(DEVICE)
    if compiled:
        model.compile_cores()
    tokens, targets = batch()
    expected = exact(tokens, targets)
    expected.mean().backward()
    loss = model(tokens.to(DEVICE), targets.to(DEVICE))
    loss.mean().backward()
    assert (loss.double().cpu() - expected).norm() < tolerance * expected.norm()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (ours.grad.double().cpu() - theirs.grad).norm() / theirs.grad.norm()
        assert error < tolerance, f"{name}: {error:.2g}"


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kv_heads", [16, 8])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)], ids=str
)
def test_masked_documents_as_in_float64_on_the_cpu(compiled, kv_heads, dtype, tolerance):
    """In bfloat16 by the kernel that takes the borders of documents, otherwise by a mask."""
    torch._dynamo.reset()
    config = replace(SMALL, kv_heads=kv_heads)
    exact = build(Mesh(2), 0.5, config=config)
    model = build(Mesh(2), 0.5, dtype=dtype, config=config).to(DEVICE)
    if compiled:
        model.compile_cores()
    # Batches of several numbers of documents: what is compiled must not depend on it.
    for borders in (BORDERS, BORDERS[[0, 3, 5]], BORDERS):
        exact.zero_grad()
        model.zero_grad()
        expected = exact(*batch(), borders)
        expected.mean().backward()
        loss = model(*(part.to(DEVICE) for part in (*batch(), borders)))
        loss.mean().backward()
        assert (loss.double().cpu() - expected).norm() < tolerance * expected.norm()
        for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
            error = (ours.grad.double().cpu() - theirs.grad).norm() / theirs.grad.norm()
            assert error < tolerance, f"{name}: {error:.2g}"


def test_int8_messages_as_on_the_cpu():
    x = torch.randn(1000, 384, generator=torch.Generator().manual_seed(0))
    assert torch.equal(int8.pack(x.to(DEVICE)).cpu(), int8.pack(x))


@pytest.mark.parametrize(
    "name", ["bfloat16", "int8", "int4", "sign", "topk:0.01", "topk:0.01,index=bitmap,values=int8"]
)
def test_codecs_as_on_the_cpu(name):
    codec, n = make_codec(name), 100_003
    flat = torch.randn(n, generator=torch.Generator().manual_seed(0))
    on_gpu, on_cpu = codec.encode(flat.to(DEVICE)), codec.encode(flat)
    assert [part.device.type for part in on_gpu] == [DEVICE] * len(on_gpu)
    assert sum(part.nbytes for part in on_gpu) == sum(part.nbytes for part in on_cpu)
    ours, theirs = codec.decode(on_gpu, n), codec.decode(on_cpu, n)
    assert ours.device.type == DEVICE
    assert (ours.cpu() - theirs).norm() <= 1e-6 * theirs.norm()
