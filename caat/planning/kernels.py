"""Seconds of a GPU's arithmetic from its data sheet and one share.

    seconds = FLOPs / (gemm · peak) + bytes that other kernels read and write / rate of the memory

``gemm`` is the share of the peak that products of matrices reach. The two parts add up: kernels of either
kind leave the other unit idle. Kernels between two products are fused, as `train.compile` does: each input is
read once and each output written once. A layer moves, in numbers per token, with a stream of x channels and
local widths of q query, v value and f MLP channels:

    forward     10 x (two norms, two sums) + 2 q + 2 v (positions) + 2 q + 2 v (attention) + 3 f (SwiGLU)
    backward    12 x                       + 2 q + 2 v             + 4 q + 4 v             + 5 f

tests/planning/test_published.py compares with measurements by others.
"""

from __future__ import annotations

from dataclasses import dataclass

from caat.optim.kinds import kinds_of, saved_numbers
from caat.planning.activations import WIDE, Pass
from caat.planning.costs import flops_per_token, recomputed_flops_per_token
from conf.optim import OptimConfig


@dataclass(frozen=True)
class Moved:
    """Bytes of a token that kernels other than matrix products read and write in a layer of one process.

    ``core`` is the part of ``forward`` between the matrix products, which selective checkpointing repeats.
    """

    forward: float
    backward: float
    core: float

    def of_layer(self, checkpointing: str) -> float:
        """Return the bytes of forward, backward, and what is computed again."""
        again = {"none": 0.0, "selective": self.core, "full": self.forward}
        return self.forward + self.backward + again[checkpointing]


@dataclass(frozen=True)
class Kernels:
    """A GPU by the FLOP/s of its matrix products, and the bytes/s of its memory."""

    gemm_flops: float
    memory_rate: float

    def pass_seconds(self, p: Pass, moved: Moved | None = None) -> float:
        """Return the seconds of forward, backward and recomputation; ``moved`` is by caat's own layers."""
        flops = _flops(p) * p.tokens / p.processes
        # The loss reads the logits, and reads them again for their gradient.
        logits = 3 * p.vocabulary * p.element_size
        layers = p.model.layers * (moved or layer_bytes(p)).of_layer(p.checkpointing)
        return flops / self.gemm_flops + (layers + logits) * p.tokens / self.memory_rate

    def sustained(self, p: Pass, moved: Moved | None = None) -> float:
        """Return the FLOP/s of a process over all kernels of a pass, recomputed FLOPs included."""
        return _flops(p) * p.tokens / p.processes / self.pass_seconds(p, moved)

    def optimizer_seconds(self, numbers: int, element_size: int, optim: OptimConfig) -> float:
        """Return the seconds of the optimizer's step for ``numbers`` weights of a process.

        The gradient is read for its norm, read and written to clip it, and read by the step, in float32. The
        step reads and writes master weights and state, and writes the weights.
        """
        gradient, state = 4 * WIDE, 2 * WIDE * saved_numbers(kinds_of(optim))
        return numbers * (gradient + state + element_size) / self.memory_rate


def layer_bytes(p: Pass) -> Moved:
    """Return the bytes that the kernels of caat's layers move."""
    c, s = p.model, p.element_size
    stream = p.channels + p.local * (c.hidden - p.channels)
    query, value, ffn = (size // p.processes for size in (c.query_size, c.key_value_size, c.ffn))
    core = 4 * query + 4 * value + 3 * ffn
    backward = 12 * stream + 6 * query + 6 * value + 5 * ffn
    return Moved(s * (10 * stream + core), s * backward, s * core)


def _flops(p: Pass) -> int:
    again = recomputed_flops_per_token(p.model, p.sequence, p.checkpointing)
    return flops_per_token(p.model, p.sequence) + again
