"""What islands that come and go send each other in a round: changes, and the anchor for those behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from caat.compression.feedback import Feedback
from caat.compression.messages import Encoded, Exact, Messages
from caat.compression.spec import make_codec
from caat.parallel.meeting import Meeting
from caat.parallel.membership import LostError, Round, Standing
from caat.training.islands.message import Message
from conf.islands import IslandsConfig


@dataclass
class Outcome:
    """How a round ended; ``why`` it failed, if it did.

    ``sums`` of the changes of the round's contributors, by message. ``anchors`` and velocities of the lead,
    by message, if this island was behind. All in host memory.
    """

    round: Round | None = None
    why: str = ""
    sums: Sequence[Tensor] = ()
    anchors: Sequence[tuple[Tensor, Tensor | None]] | None = None


class Exchange:
    """Sends the numbers of ``messages`` in rounds. Runs in a thread, one round at a time.

    Small messages and those with a codec are gathered and added in the order of the islands, so that all
    ranks that hold a number twice get the same bits. Large ones are summed in a ring.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        meeting: Meeting,
        settings: IslandsConfig,
        *,
        seed: int,
        name: str,
        holder: int,
    ) -> None:
        self._messages, self._meeting = messages, meeting
        # Ranks round independently, but alike where they hold the same numbers.
        own = seed + crc32(f"{name} {holder}".encode())
        self._codecs = [make_codec(settings.codec, own + number) for number in range(len(messages))]
        self.feedbacks = [
            Feedback(codec)
            if settings.feedback and codec.biased and settings.codec != "none" and not message.replicated
            else None
            for codec, message in zip(self._codecs, messages, strict=True)
        ]
        self._encoders: list[Messages | None] = [
            Exact()
            if message.replicated
            else None
            if settings.codec == "none"
            else Encoded(codec, settings.codec, feedback)
            for message, codec, feedback in zip(messages, self._codecs, self.feedbacks, strict=True)
        ]
        # The residuals before the round in flight.
        self.before: list[dict] = [{} for _ in messages]

    def begin(self, step: int) -> None:
        """Keep what a failed round must leave as it was, and draw the random numbers of ``step``."""
        self.before = [
            {key: values.clone() for key, values in each.residuals.items()} if each else {}
            for each in self.feedbacks
        ]
        for codec in self._codecs:
            codec.counter.start(step)

    def take_back(self) -> None:
        """Restore the residuals from before a round that failed."""
        for feedback, before in zip(self.feedbacks, self.before, strict=True):
            if feedback is not None:
                feedback.residuals.clear()
                feedback.residuals.update(before)

    def forget(self) -> None:
        """Drop the residuals: they belong to an anchor that is given up."""
        for feedback in self.feedbacks:
            if feedback is not None:
                feedback.residuals.clear()

    @torch.no_grad()
    def run(self, changes: Sequence[Tensor], standing: Standing) -> Outcome:
        """Take part in the next round, with this island's ``changes`` by message. Collective over the island.

        Raises :class:`~caat.parallel.membership.RefusedError`.
        """
        try:
            found = self._meeting.ask(standing)
        except LostError as error:
            return Outcome(why=str(error))
        outcome = Outcome(found)
        try:
            self._meeting.connect()
            if found.behind:
                outcome.anchors = self._anchors(found)
            if found.contributors:
                outcome.sums = [self._sum(number, change, found) for number, change in enumerate(changes)]
        # What gloo and its store raise if an island or the link is lost.
        except (RuntimeError, OSError) as error:
            outcome.why = " ".join(str(error).split())[:120] or type(error).__name__
        if not self._meeting.agree(not outcome.why):
            outcome.why = outcome.why or "another process of this island lost the others"
        return outcome

    def _anchors(self, found: Round) -> list[tuple[Tensor, Tensor | None]] | None:
        """Send the lead's anchor to the islands behind; return it on these."""
        arrived = []
        for message in self._messages:
            pair: list[Tensor | None] = []
            for values in (message.anchor, message.velocity):
                if values is not None and values.numel():
                    # The others only pass the message on.
                    values = values.detach().cpu().clone()
                    self._meeting.broadcast(values, found.lead, "anchor")
                pair.append(values)
            assert pair[0] is not None
            arrived.append((pair[0], pair[1]))
        return arrived if found.late else None

    def _sum(self, number: int, change: Tensor, found: Round) -> Tensor:
        """Return the sum of the contributors' changes."""
        alone, mine = len(found.names) == 1, found.place in found.contributors
        if alone or not change.numel():
            return change
        encoder = self._encoders[number]
        if encoder is None:
            total = change.clone() if mine else torch.zeros_like(change)
            self._meeting.sum(total, "changes")
            return total
        message = encoder.encode("change", change) if mine else torch.empty(0, dtype=torch.uint8)
        arrived = self._meeting.gather(message, "changes")
        total = torch.zeros(len(change))
        for place in found.contributors:
            total += encoder.decode(arrived[place], len(change), torch.float32)
        return total
