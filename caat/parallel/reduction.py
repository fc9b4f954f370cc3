"""Sums of gradients over replicas: exact by slices, or as messages of a codec.

    to owners    each rank sends each owner its slice of the message; the owner adds the D slices
    everywhere   sliced: sums at owners, which encode their sum again, and all ranks gather the slices
                 gathered: every rank sends its whole message to all ranks, and adds the D messages
                 linear: the small parts of the codec are all-reduced

Numbers are added in float32, in the order of the ranks, so that all ranks get the same bits. A rank does not
encode its own slice for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from caat.compression.codec import Linear, Shapes
from caat.compression.feedback import Feedback
from caat.compression.messages import Encoded, Exact, Messages
from caat.compression.spec import make_codec
from caat.parallel.exchange import Exchange
from caat.parallel.ring import ring_bytes
from caat.parallel.seconds import Seconds
from conf.codec import BLOCK
from conf.data_sync import DataSyncConfig

# Called with the bytes that this rank sends, and their purpose.
Count = Callable[[int, str], None]


class Reduction:
    """Sums messages over the ranks of ``exchange``. Collective. ``seed`` is that of the run.

    :attr:`seconds` adds up the host's time in the phases encode, wire and decode.
    """

    def __init__(self, exchange: Exchange, settings: DataSyncConfig, count: Count, seed: int = 0) -> None:
        self.exchange, self.count = exchange, count
        self.exact = settings.codec == "none"
        codec = make_codec(settings.codec, seed)
        if not codec.same_draws:
            # Ranks round independently.
            codec = make_codec(settings.codec, seed + (exchange.rank + 1) * 0x9E3779B1)
        self.codec = codec
        self.feedback = Feedback(codec) if settings.feedback and codec.biased and not self.exact else None
        self.messages: Messages = Exact() if self.exact else Encoded(codec, settings.codec, self.feedback)
        self.seconds = Seconds()
        self._turn = 0

    def begin(self) -> None:
        """Begin a backward pass. Its messages are told apart by their order, the same in every pass."""
        self._turn = 0

    @torch.no_grad()  # DeepSpeed's hooks run with gradients enabled
    def to_owners(self, slices: Sequence[Tensor]) -> Tensor:
        """Return the sum over the ranks of the slice that this rank owns, in float32.

        ``slices`` [n_r] are this rank's numbers for each owner r.
        """
        assert self.codec.way != "linear", "all ranks get the whole sum anyway"
        return self._at_owner(self._next(), slices)

    @torch.no_grad()
    def everywhere(self, flat: Tensor, shapes: Shapes = ()) -> None:
        """Replace ``flat`` [n], which concatenates tensors of ``shapes``, by its sum over the ranks."""
        turn, size, self.codec.shapes = self._next(), self.exchange.size, shapes
        if self.codec.way == "linear":
            flat.copy_(self._linear((turn, "all"), flat))
            return
        if self.codec.way == "gathered":
            message = self._encoded((turn, "all"), flat)
            came = self._gather(message, [len(flat)] * size, flat.dtype)
            flat.copy_(self._sum(came, len(flat), flat.dtype))
            return
        # Whole blocks, so that slicing adds no bytes.
        each = BLOCK * -(-len(flat) // (BLOCK * size))
        slices = [flat[owner * each : (owner + 1) * each] for owner in range(size)]
        message = self._encoded((turn, "sum"), self._at_owner(turn, slices))
        came = self._gather(message, [len(part) for part in slices], torch.float32)
        for part, arrived in zip(slices, came, strict=True):
            part.copy_(self._sum([arrived], len(part), torch.float32))

    def start_step(self, step: int) -> None:
        """Draw the random numbers of ``step``."""
        self.codec.counter.start(step)

    def memories(self) -> dict[str, dict[tuple[Hashable, int], Tensor]]:
        """Return what is kept between steps, by kind and message."""
        return {"feedback": self.feedback.residuals if self.feedback else {}, "codec": self.codec.memory()}

    def forget(self) -> None:
        """Drop the residuals: those of a skipped step hold a part of its gradient."""
        if self.feedback:
            self.feedback.residuals.clear()

    def _next(self) -> int:
        self._turn += 1
        return self._turn

    def _at_owner(self, turn: int, slices: Sequence[Tensor]) -> Tensor:
        me, own = self.exchange.rank, slices[self.exchange.rank]
        out = [None if r == me else self._encoded((turn, r), part) for r, part in enumerate(slices)]
        came = self._swap(out, [len(own)] * len(slices), own.dtype)
        return self._sum(came, len(own), own.dtype, own)

    def _gather(self, message: Tensor, numbers: Sequence[int], dtype: torch.dtype) -> list[Tensor | None]:
        came = self._swap([message] * self.exchange.size, numbers, dtype)
        came[self.exchange.rank] = message
        return came

    def _swap(
        self, out: Sequence[Tensor | None], numbers: Sequence[int], dtype: torch.dtype
    ) -> list[Tensor | None]:
        """Exchange messages; rank r sends ``numbers[r]`` numbers of type ``dtype``."""
        device = next(message.device for message in out if message is not None)
        with self.seconds.timed("wire"):
            if self.messages.fixed:
                lengths = [self.messages.length(n, dtype) for n in numbers]
            else:
                lengths = self.exchange.lengths(out, device)
                self.count(8 * (self.exchange.size - 1), "control")
            came: list[Tensor | None] = [
                None if r == self.exchange.rank else torch.empty(k, dtype=torch.uint8, device=device)
                for r, k in enumerate(lengths)
            ]
            self.exchange.start(out, came).wait()
        self.count(self.exchange.sent_bytes(out), "gradients")
        return came

    def _encoded(self, key: Hashable, flat: Tensor) -> Tensor:
        with self.seconds.timed("encode"):
            return self.messages.encode(key, flat)

    def _sum(
        self, came: Iterable[Tensor | None], n: int, dtype: torch.dtype, own: Tensor | None = None
    ) -> Tensor:
        """Add the ``n`` numbers of each message, in rank order; ``own`` takes the place of None."""
        with self.seconds.timed("decode"):
            total: Tensor | None = None
            for number, message in enumerate(came):
                if message is None:
                    assert own is not None
                    part = own.float()
                else:
                    part = self.messages.decode(message, n, dtype)
                if total is None:
                    total = part
                elif number == 1:
                    # Not in place: the first part may be a slice of the gradients.
                    total = total + part
                else:
                    total.add_(part)
            assert total is not None
            return total

    def _linear(self, key: Hashable, flat: Tensor) -> Tensor:
        assert isinstance(self.codec, Linear)

        def total(part: Tensor) -> Tensor:
            with self.seconds.timed("wire"):
                dist.all_reduce(part, group=self.exchange.group)
            self.count(ring_bytes(part.nbytes, self.exchange.size), "gradients")
            return part

        if len(flat) == 0:
            return flat.float()
        before = self.seconds["wire"]
        with self.seconds.timed("encode"):
            if self.feedback:
                summed = self.feedback.reduce(key, flat, total)
            else:
                summed = self.codec.reduce(key, flat.float(), total)[0]
        self.seconds["encode"] -= self.seconds["wire"] - before
        return summed
