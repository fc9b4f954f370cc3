"""Kernels and bytes, counted without a GPU, against sums by hand and against the planner's formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.parallel.partial.pointwise import compiled_by
from caat.planning.activations import Pass
from caat.planning.kernels import layer_bytes
from conf.model import ModelConfig
from eval.speed.fused import ATTENTION, PRODUCTS
from eval.speed.kernels import Alone, Counter, Moved, kernels_of
from launch.bench.kernels import main
from layers.loss import log_sum_exp

ONE_B = ModelConfig(
    name="1.1b", layers=22, hidden=2048, ffn=5632, heads=32, kv_heads=8, sequence=2048, vocab_size=32000
)
ONE = Mesh(1)
TOKENS = 4 * ONE_B.sequence
UNIT = TOKENS * ONE_B.hidden * 2
# Bytes in float32 of a matrix, and of a vector as long as its rows or columns.
MATRIX, VECTOR = 16 * 16 * 4, 16 * 4


def matrix() -> Tensor:
    return torch.empty(16, 16, device="meta")


def totals(counter: Counter) -> Moved:
    return sum(counter.moved.values(), Moved())


@pytest.mark.parametrize(
    ("run", "kernels", "moved"),
    [
        (lambda x: x.T[:, 2:].unflatten(0, (4, 4)).chunk(2), 0, 0),
        (lambda x: x * x.T, 1, 3 * MATRIX),
        (lambda x: x * x[0].expand(16, 16), 1, 2 * MATRIX + VECTOR),
        (lambda x: torch.empty_like(x).copy_(x), 1, 2 * MATRIX),
        (lambda x: torch.mm(x, x, out=torch.empty_like(x)), 1, 3 * MATRIX),
        # The copy of what is added, and the product that reads and writes it.
        (lambda x: torch.baddbmm(x[None], x[None], x[None]), 2, 6 * MATRIX),
        (lambda x: x[:, :0] * x[:, :0], 0, 0),
        # As many numbers as there are indices of 8 bytes.
        (lambda x: x.gather(0, torch.empty(1, 16, device="meta", dtype=torch.long)), 1, 4 * VECTOR),
    ],
)
def test_an_operator_is_one_kernel(run: Callable, kernels: int, moved: int) -> None:
    x = matrix()
    with Counter() as counter:
        run(x)
    assert totals(counter) == Moved(kernels, moved)


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def scaled_by_row_sum(x: Tensor) -> Tensor:
    return x * x.sum(-1, keepdim=True)


def scaled_by_column_sum(x: Tensor) -> Tensor:
    return x * x.sum(0)


@pytest.mark.parametrize(
    ("function", "kernels", "moved"),
    [
        (swiglu, 1, 1.5 * MATRIX),
        (lambda x: (x + 1, x * 2), 1, 3 * MATRIX),
        (scaled_by_row_sum, 1, 2 * MATRIX),
        # The sum is complete only at the end of its kernel.
        (scaled_by_column_sum, 2, 3 * MATRIX + 2 * VECTOR),
        (lambda x: torch.empty_like(x).copy_(x + 1), 1, 2 * MATRIX),
        # A product reads and writes memory, as do the kernels before and after it.
        (lambda x: ((x + 1) @ x).relu(), 3, 2 * MATRIX + 3 * MATRIX + 2 * MATRIX),
    ],
)
def test_a_compiled_function_reads_and_writes_once(function: Callable, kernels: int, moved: float) -> None:
    counter = Counter()
    compiled = counter.compile(function)
    with counter:
        compiled(matrix())
    assert totals(counter) == Moved(kernels, int(moved))


def test_a_compiled_backward_pass_is_counted_too() -> None:
    counter = Counter()
    compiled = counter.compile(swiglu)
    x = matrix().requires_grad_()
    with counter:
        y = compiled(x)
        forward = totals(counter)
        y.backward(torch.empty_like(y))
    # Reads both halves and the gradient; writes the gradients of both halves.
    assert totals(counter) - forward == Moved(1, int((1 + 0.5 + 1) * MATRIX))


def test_another_compiler_is_used_only_within_its_context() -> None:
    logits = torch.randn(4, 8)
    counter = Counter()
    with compiled_by(counter.compile), counter:
        counted = log_sum_exp(logits, compiled=True)
    assert totals(counter).kernels == 1
    assert torch.equal(counted, log_sum_exp(logits, compiled=False))


@cache
def between_products(mesh: Mesh, ratio: float, *, compiled: bool) -> float:
    """In units of one [tokens, hidden] tensor, for a block of the 1.1b model."""
    moved = kernels_of(ONE_B, mesh, ratio, 4, dtype=torch.bfloat16, compiled=compiled)["block"]
    return sum(moved[name].bytes for name in moved.keys() - {*PRODUCTS, *ATTENTION}) / UNIT


def test_one_compiled_shard_moves_what_the_planner_says() -> None:
    """The planner's formula counts the kernels by hand, attention among them."""
    p = Pass(ONE_B, 1, 1, ONE_B.hidden, 4, ONE_B.sequence, 2, "none")
    attention = 6 * (p.model.query_size + p.model.key_value_size) * p.element_size
    planned = (layer_bytes(p).of_layer("none") - attention) * TOKENS / UNIT
    assert between_products(ONE, 1.0, compiled=True) == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize(
    ("mesh", "ratio", "goal"),
    [(ONE, 1.0, 55), (Mesh(8), 0.5, 110), (Mesh(8, 8, tensor=Alone(8, None)), 0.5, 30)],
    ids=["one shard", "eight shards in a process", "eight processes"],
)
def test_compiled_blocks_stay_within_the_goals(mesh: Mesh, ratio: float, goal: float) -> None:
    """A change that adds a pass over memory is seen without a GPU."""
    assert (
        between_products(mesh, ratio, compiled=True) <= goal < between_products(mesh, ratio, compiled=False)
    )


def test_the_command_counts_what_the_functions_count(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    main(["operators=true", f"out={out}"])
    rows = json.loads(out.read_text())["rows"]
    found = next(row for row in rows if row["operator"] == "all" and row["between"] == "eager")
    assert found["units"] == between_products(ONE, 1.0, compiled=False)
    operators = [row for row in rows if all(row[key] == found[key] for key in ("part", "where", "between"))]
    for figure in ("kernels", "units", "product_units", "attention_units"):
        assert sum(row[figure] for row in operators) == pytest.approx(2 * found[figure])
