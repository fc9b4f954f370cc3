"""Step times that others measured on A100s, from the data sheet and one fitted constant."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from scipy.optimize import minimize_scalar

from caat.planning.activations import Pass
from caat.planning.kernels import Kernels, Moved
from caat.planning.parameters import local_numbers, local_parameters
from caat.planning.prediction import Link
from caat.planning.traffic import step_time
from conf.data_sync import DataSyncConfig
from conf.gpus import GPUS
from conf.model import ModelConfig
from conf.optim import OptimConfig
from conf.sync import WireFormat
from conf.units import rate_bytes

SEQUENCE, VOCABULARY, TENSOR = 2048, 51200, 8
A100 = GPUS["a100"]
# The share of the peak that matrix products reach, fitted below; docs/planning.md recommends it.
GEMM = 0.67


class Published(NamedTuple):
    """A row of table 5 in arXiv 2205.05198 (sizes: table 3), with the seconds of an iteration."""

    layers: int
    hidden: int
    heads: int
    pipeline: int
    # Parts of the model on each stage of the pipeline.
    interleaved: int
    batch: int
    micro_batch: int
    full: float
    selective: float


ROWS = {
    "22B": Published(48, 6144, 64, 1, 1, 4, 4, full=1.42, selective=1.10),
    "175B": Published(96, 12288, 96, 8, 3, 64, 1, full=18.13, selective=13.75),
    "1T": Published(128, 25600, 160, 64, 1, 512, 1, full=94.42, selective=71.49),
}
CASES = [(name, mode) for name in ROWS for mode in ("full", "selective")]


def gpt_3(row: Published) -> ModelConfig:
    """Our model with the matrix products of theirs: SwiGLU of 8 h / 3 has the weights of an MLP of 4 h."""
    ffn = 8 * row.hidden // 3 // TENSOR * TENSOR
    sizes = {"layers": row.layers, "hidden": row.hidden, "ffn": ffn, "heads": row.heads}
    return ModelConfig(**sizes, kv_heads=row.heads, sequence=SEQUENCE, vocab_size=VOCABULARY)


def megatron_bytes(row: Published, mode: str) -> Moved:
    """What Megatron's kernels of 2022 moved: GELU, dropout, biases, and attention scores in memory.

    Bytes per token of a layer on a process, with fp16 numbers and masks of a byte. Norms, dropout and sums of
    the stream are repeated on all processes, unless the sequence is cut ("sequence parallelism").
    """
    h, scores = row.hidden, row.heads * SEQUENCE
    share = 1 if mode == "full" else TENSOR
    # Norm: read, write. Dropout and sum: read two, write one and the mask. Backward: norm reads two, writes
    # one, and reads two for its weights; dropout reads one and the mask, writes one; sums; biases.
    stream = 2 * (4 + 7) * h, 2 * (10 + 5 + 6 + 3) * h
    # GELU of 4 h, and queries, keys and values reordered.
    inner = (16 + 12) * h, (24 + 24) * h
    # Written, softmax, dropout with mask, read. Backward: the same gradients; two products read each.
    core = (2 + 4 + 5) * scores + 2 * scores, (2 + 5 + 6) * scores + 6 * scores
    forward, backward = (
        each / share + (a + b) / TENSOR for each, a, b in zip(stream, inner, core, strict=True)
    )
    return Moved(forward, backward, core[0] / TENSOR)


def iteration_seconds(row: Published, mode: str, gemm: float, moved: Moved | None = None) -> float:
    """The planner's step of the whole model on one group of 8 GPUs, cut into stages, with their bubble."""
    model, micro_batches = gpt_3(row), row.batch // row.micro_batch
    p = Pass(model, TENSOR, TENSOR, row.hidden, row.micro_batch, SEQUENCE, 2, mode)
    kernels, link = Kernels(gemm * A100.peak * 1e12, A100.memory_rate * 1e9), Link(rate_bytes(A100.node_link))
    step = step_time(
        p,
        1.0,
        overlap=False,
        accumulation=micro_batches,
        wire=WireFormat(2),
        flops_per_second=kernels.sustained(p, moved or megatron_bytes(row, mode)),
        tensor_link=link,
        held=local_parameters(model, TENSOR, TENSOR),
        replicas=1,
        stage=1,
        precision="bf16",
        data_link=link,
        data_sync=DataSyncConfig(),
    ).seconds
    if mode == "full":
        # Megatron's recomputation repeats the messages of the forward pass; ours does not.
        message = 2 * row.hidden * row.micro_batch * SEQUENCE
        step += micro_batches * 2 * row.layers * link.all_reduce_seconds(message, TENSOR)
    bubble = 1 + (row.pipeline - 1) / (micro_batches * row.interleaved)
    optimizer = kernels.optimizer_seconds(local_numbers(model, TENSOR, TENSOR), 2, OptimConfig())
    return (step * bubble + optimizer) / row.pipeline


def errors(gemm: float, moved: Moved | None = None) -> dict[tuple[str, str], float]:
    return {
        (name, mode): iteration_seconds(ROWS[name], mode, gemm, moved) / getattr(ROWS[name], mode) - 1
        for name, mode in CASES
    }


def fitted(moved: Moved | None = None) -> tuple[float, float]:
    """The share with the smallest of largest errors, and that error."""
    best = minimize_scalar(
        lambda gemm: max(map(abs, errors(gemm, moved).values())), bounds=(0.3, 1.0), method="bounded"
    )
    return best.x, best.fun


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_iterations_of_megatron(name, mode):
    error = errors(GEMM)[name, mode]
    print(f"{name} {mode}: {getattr(ROWS[name], mode) * (1 + error):.2f} s, {error:+.1%}")
    assert abs(error) < 0.10


def test_the_constant_is_the_fitted_one():
    share, _ = fitted()
    assert share == pytest.approx(GEMM, abs=0.01)


def test_a_share_of_the_peak_alone_is_not_enough():
    share, error = fitted(Moved(0.0, 0.0, 0.0))
    print(f"{share:.2f}: {error:.1%}")
    assert error > 0.10
