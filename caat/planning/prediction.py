"""Step time in closed form: arithmetic, messages, and the arithmetic that hides each message.

    t(n)    = 2 (P - 1) · delay + 2 (P - 1) / P · n / rate             one all-reduce of n bytes, as a ring
    compute = FLOPs / P / F                                           F: FLOP/s that a process sustains
    full    = compute + 4 L t(h) + t(h)                               Megatron: every sum is waited for
    partial = compute + 4 L t(k) + t(h)
    overlap = compute + sum over sums of max(0, t(k) - w / F) + max(0, t(h) - w_end / F)

A message also costs a process time besides the wire (:class:`MessageCost`). A sum that is in flight beside
arithmetic adds o + n / R, because it takes a core from it. One that is waited for adds o, and its bytes keep
a core busy while they travel. o is the overhead of the LogP model (Culler et al., 1993).

w are the FLOPs that the layers compute while that sum is in flight (caat.parallel.partial.linear): with T
tokens, h channels of which m are private, a row-parallel GEMM of c local inputs and the next column-parallel
GEMM of d local outputs, w = 2 T m (c + d) forward and 2 T (m d + h d + 2 m c) backward. The one sum of all
channels is that of the head in Megatron and that of the embedding here, where w_end = 2 T h d of the first
layer. :mod:`caat.planning.traffic` adds the embedding's forward sum, which both have, and small messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from caat.planning.costs import flops_per_token
from conf.model import ModelConfig
from conf.partition import shared_channels
from conf.sync import WireFormat


@dataclass(frozen=True)
class MessageCost:
    """What a message costs a process: ``seconds`` each, and a core that handles ``rate`` bytes/s.

    ``caat doctor`` measures both. The default is a machine whose messages cost only their time on the wire.
    """

    seconds: float = 0.0
    rate: float = math.inf


@dataclass(frozen=True)
class Link:
    """A link between any two processes: ``rate`` in bytes/s per direction, ``delay`` in seconds one way.

    If several processes share it, ``rate`` is the part of one of the ``sharers``.
    """

    rate: float
    delay: float = 0.0
    cost: MessageCost = MessageCost()
    sharers: int = 1

    def all_reduce_seconds(self, size: float, processes: int) -> float:
        """Return the seconds of a ring all-reduce of ``size`` bytes over ``processes`` that wait for it."""
        if not size:
            return 0.0
        sent = self.sent_bytes(size, processes)
        return self.cost.seconds + max(self.wire_seconds(size, processes), sent / self.cost.rate)

    def wire_seconds(self, size: float, processes: int) -> float:
        """Return the seconds that the same message is on the wire; none if it has no bytes."""
        if not size:
            return 0.0
        return 2 * (processes - 1) * self.delay + self.sent_bytes(size, processes) / self.rate

    def core_seconds(self, size: float, processes: int) -> float:
        """Return the seconds that the same message takes from the arithmetic beside it."""
        if not size:
            return 0.0
        return self.cost.seconds + self.sent_bytes(size, processes) / self.cost.rate

    @staticmethod
    def sent_bytes(size: float, processes: int) -> float:
        """Return the bytes that each process sends for the message."""
        return 2 * (processes - 1) / processes * size


@dataclass(frozen=True)
class Step:
    """Seconds of arithmetic in one step, and seconds in which a process only waits for messages."""

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
    """Predict a forward and backward pass of ``tokens`` tokens on ``processes`` tensor-parallel processes.

    ``mode`` is none, full, partial or overlap; ``flops_per_second`` is the sustained rate of one process,
    with FLOPs counted as in :func:`flops_per_token`.
    """
    compute = flops_per_token(c, c.sequence) * tokens / processes / flops_per_second
    if mode == "none" or processes == 1:
        return Step(compute, 0.0)
    channels = c.hidden if mode == "full" else shared_channels(c.hidden, ratio, processes)
    if mode != "overlap":
        each = link.all_reduce_seconds(tokens * wire.token_bytes(channels), processes)
        end = link.all_reduce_seconds(tokens * wire.token_bytes(c.hidden), processes)
        return Step(compute, 4 * c.layers * each + end)
    first_out = (c.query_size + 2 * c.key_value_size) / processes
    sums = [(c.hidden, 2 * tokens * c.hidden * first_out)]
    sums += [(channels, flops) for flops in _hiding_flops(c, tokens, processes, c.hidden - channels)]
    exposed = 0.0
    for summed, flops in sums:
        size = tokens * wire.token_bytes(summed)
        exposed += link.core_seconds(size, processes)
        exposed += max(0.0, link.wire_seconds(size, processes) - flops / flops_per_second)
    return Step(compute, exposed)


def _hiding_flops(c: ModelConfig, tokens: int, processes: int, private: int) -> Iterator[float]:
    """Yield the FLOPs of a process that hide each sum: for each sub-layer, forward and backward."""
    qkv = (c.query_size + 2 * c.key_value_size) / processes
    for layer in range(c.layers):
        after = qkv if layer + 1 < c.layers else c.vocab_size / processes
        attention, mlp = c.query_size / processes, c.ffn / processes
        for row_in, column_out in ((attention, 2 * mlp), (mlp, after)):
            yield 2 * tokens * private * (row_in + column_out)
            yield 2 * tokens * (private * column_out + c.hidden * column_out + 2 * private * row_in)
