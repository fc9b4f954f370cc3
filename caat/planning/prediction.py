"""Step time in closed form: arithmetic, messages, and which arithmetic hides which message.

    t(n)    = 2 (P - 1) · delay + 2 (P - 1) / P · n / rate             one all-reduce of n bytes, as a ring
    compute = FLOPs / P / F                                           F: FLOP/s that a process sustains
    full    = compute + 4 L t(h) + t(h)                               Megatron: every sum is waited for
    partial = compute + 4 L t(k) + t(h)
    overlap = compute + sum over sums of max(0, t(k) - w / F) + max(0, t(h) - w_end / F)

w are the FLOPs that the layers compute while that sum is in flight (caat.parallel.partial.linear): with T
tokens, h channels of which m are private, a row-parallel GEMM of c local inputs and the column-parallel GEMM
of d local outputs behind it, 2 T m (c + d) forward and 2 T (m d + h d + 2 m c) backward. The one sum of all
channels is the head's in Megatron and the embedding's in ours; there w_end = 2 T h d of the first layer. The
embedding's forward sum, which both have, and small messages are left to :mod:`caat.planning.traffic`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from caat.planning.costs import flops_per_token
from conf.model import ModelConfig
from conf.partition import shared_channels
from conf.sync import WireFormat


@dataclass(frozen=True)
class Link:
    """Between any two processes: ``rate`` in bytes per second each way, ``delay`` in seconds one way."""

    rate: float
    delay: float = 0.0

    def all_reduce_seconds(self, size: float, processes: int) -> float:
        """Of ``size`` bytes, as a ring over ``processes``."""
        steps = 2 * (processes - 1)
        return steps * self.delay + steps / processes * size / self.rate if size else 0.0


@dataclass(frozen=True)
class Step:
    """Seconds of one step, and the part of them in which a process only waits for messages."""

    compute: float
    exposed: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed


def predict(
    c: ModelConfig,
    tokens: int,
    processes: int,
    mode: str,
    ratio: float,
    *,
    wire: WireFormat,
    flops_per_second: float,
    link: Link,
) -> Step:
    """One forward and backward pass of ``tokens`` tokens by ``processes`` tensor-parallel processes.

    ``mode`` is none, full, partial or overlap; ``flops_per_second`` is what one process sustains, counted as
    :func:`flops_per_token` counts.
    """
    compute = flops_per_token(c, c.sequence) * tokens / processes / flops_per_second
    if mode == "none" or processes == 1:
        return Step(compute, 0.0)
    channels = c.hidden if mode == "full" else shared_channels(c.hidden, ratio, processes)
    each = link.all_reduce_seconds(tokens * wire.token_bytes(channels), processes)
    end = link.all_reduce_seconds(tokens * wire.token_bytes(c.hidden), processes)
    if mode != "overlap":
        return Step(compute, 4 * c.layers * each + end)
    first_out = (c.hidden + 2 * c.kv_heads * c.head_dim) / processes
    exposed = max(0.0, end - 2 * tokens * c.hidden * first_out / flops_per_second)
    for flops in _hiding_flops(c, tokens, processes, c.hidden - channels):
        exposed += max(0.0, each - flops / flops_per_second)
    return Step(compute, exposed)


def _hiding_flops(c: ModelConfig, tokens: int, processes: int, private: int) -> Iterator[float]:
    """FLOPs of a process beside each sum: of each sub-layer forward, then backward."""
    qkv = (c.hidden + 2 * c.kv_heads * c.head_dim) / processes
    for layer in range(c.layers):
        after = qkv if layer + 1 < c.layers else c.vocab_size / processes
        for row_in, column_out in ((c.hidden / processes, 2 * c.ffn / processes), (c.ffn / processes, after)):
            yield 2 * tokens * private * (row_in + column_out)
            yield 2 * tokens * (private * column_out + c.hidden * column_out + 2 * private * row_in)
