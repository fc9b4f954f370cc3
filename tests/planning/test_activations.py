"""What the layers keep for backward, as the plan counts it: exactly what a forward pass leaves alive."""

from __future__ import annotations

import gc
import itertools
import time
import warnings

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.planning.activations import Pass, block_bytes, logit_bytes
from conf.model import ModelConfig
from conf.partition import shared_channels
from layers.gpt import GPT
from layers.weights import initial_weights

BATCH, SEQUENCE, VOCABULARY = 2, 16, 61
MODES = ("none", "selective", "full")
# Shards, ratio, checkpointing, precision, KV heads: of 4 shards, one head each or two.
CASES = [
    *itertools.product((4,), (0.5, 1.0), MODES, ("fp32",), (8,)),
    *itertools.product((4,), (0.0, 1.0), ("none", "selective"), ("bf16",), (4,)),
]


def alive() -> list[torch.Tensor]:
    """Every tensor that Python knows of, but the random states that recomputation keeps."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    return [tensor for tensor in tensors if tensor.dtype != torch.uint8]


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def bytes_after_forward(model: GPT, borders: torch.Tensor | None) -> int:
    """All that a forward pass leaves: what autograd packs, and what checkpoints and the model hold on to."""
    text = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1))
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    before = storages(alive())
    packed: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model(tokens, targets, borders)
    kept = storages(packed)
    # gloo's threads hold the last messages for a moment longer: until nothing more goes away.
    after, last = storages(alive()) | kept, {}
    while after != last:
        time.sleep(0.2)
        after, last = storages(alive()) | kept, after
    left = sum(size for place, size in after.items() if place not in before or place in kept)
    weights = sum(size for place, size in storages(list(model.parameters())).items() if place in kept)
    # The losses belong to the caller.
    return left - weights - losses.untyped_storage().nbytes()


def compare(
    processes: int, cases: list[tuple], options: dict | None = None, masked: bool = False
) -> list[tuple[int, int]]:
    """Counted and expected bytes of each case."""
    # What was there before is of no interest, and looking at it takes long.
    gc.collect()
    gc.freeze()
    found = []
    for shards, ratio, checkpointing, precision, kv_heads in cases:
        shape = dict(layers=3, hidden=64, ffn=96, heads=8, vocab_size=VOCABULARY, sequence=SEQUENCE)
        config = ModelConfig(**{**shape, "kv_heads": kv_heads, **(options or {})})
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        mesh = Mesh(shards) if processes == 1 else Mesh.create(shards, processes)
        full = initial_weights(config, 1)
        model = GPT.empty(config, mesh, ratio, 1.0, checkpointing, dtype=dtype).fill(full)
        channels = shared_channels(config.hidden, ratio, shards)
        sizes = BATCH, SEQUENCE, dtype.itemsize
        p = Pass(config, shards, processes, channels, *sizes, checkpointing, cuda=False, masked=masked)
        borders = torch.tensor([0, 5, 16, 20, 32], dtype=torch.int32) if masked else None
        found.append((bytes_after_forward(model, borders), block_bytes(p) + logit_bytes(p)))
    gc.unfreeze()
    return found


def check(found: list[tuple[int, int]], cases: list[tuple]) -> None:
    for (counted, expected), case in zip(found, cases, strict=True):
        assert counted == expected, (case, counted - expected)


def test_one_process():
    cases = [(1, 1.0, "none", "fp32", 8), *CASES]
    check(compare(1, cases), cases)


def test_masked_documents():
    check(compare(1, CASES, masked=True), CASES)


@pytest.mark.parametrize("processes", [2])
def test_several_processes(ranks, processes):
    # The last one holds the padding of the vocabulary, and masks it.
    check(ranks(processes).run(compare, processes, CASES)[-1], CASES)
