"""Point-to-point messages between all ranks of a group, in both directions at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Messages, each with the rank that it goes to or comes from.
Addressed = Sequence[tuple[int, Tensor]]


class Finished(dist.Work):
    """The work of a collective that is complete when it is returned."""

    def wait(self, timeout: object = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class InFlight(dist.Work):
    """The work of several messages. Holds the sent tensors until :meth:`wait`.

    ``arriving`` are pairs of a tensor to receive into and the tensor that the backend writes to.
    """

    def __init__(
        self,
        works: Sequence[dist.Work],
        sent: Sequence[Tensor],
        arriving: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__()
        self._works, self._sent, self._arriving = works, sent, arriving

    def wait(self, timeout: object = None) -> bool:
        for work in self._works:
            work.wait()
        for into, arrived in self._arriving:
            if into is not arrived:
                into.copy_(arrived)
        self._sent = self._arriving = ()
        return True

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)


class Exchange:
    """Sends a message to every other rank and receives one from each.

    gloo connects two ranks of a group once, and two large messages that cross share that connection one after
    the other. With ``ways``, a group for messages to higher ranks and one for messages to lower ranks, both
    are in flight at once, which halves the time. Without ``ways``, as with NCCL, one group carries both.
    """

    def __init__(self, group: dist.ProcessGroup, ways: Sequence[dist.ProcessGroup] | None = None) -> None:
        self.group, self.ways = group, ways
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def start(self, out: Sequence[Tensor | None], into: Sequence[Tensor | None]) -> dist.Work:
        """Send the contiguous ``out[r]`` to rank r and receive ``into[r]`` from it; None: no message.

        Own entries are ignored. The tensors must not change, or be read, before the work is waited for.
        """
        receives = [(r, t) for r, t in enumerate(into) if r != self.rank and t is not None and t.numel()]
        sends = [(r, t) for r, t in enumerate(out) if r != self.rank and t is not None and t.numel()]
        return self._batched(receives, sends) if self.ways is None else self._both_ways(receives, sends)

    def _batched(self, receives: Addressed, sends: Addressed) -> dist.Work:
        operations = [dist.P2POp(dist.irecv, t, group=self.group, group_peer=r) for r, t in receives]
        operations += [dist.P2POp(dist.isend, t, group=self.group, group_peer=r) for r, t in sends]
        works = dist.batch_isend_irecv(operations) if operations else []
        return InFlight(works, [t for _, t in sends])

    def _both_ways(self, receives: Addressed, sends: Addressed) -> dist.Work:
        assert self.ways is not None
        up, down = self.ways
        # gloo sends and receives only tensors in host memory.
        sends = [(r, t.cpu()) for r, t in sends]
        arriving = [(t, torch.empty_like(t, device="cpu") if t.is_cuda else t) for _, t in receives]
        # Receives first: a message that arrives before its receive is posted waits in the kernel.
        works = [
            dist.irecv(host, group=up if r < self.rank else down, group_src=r)
            for (r, _), (_, host) in zip(receives, arriving, strict=True)
        ]
        works += [dist.isend(t, group=up if r > self.rank else down, group_dst=r) for r, t in sends]
        return InFlight([work for work in works if work is not None], [t for _, t in sends], arriving)

    def sent_bytes(self, out: Sequence[Tensor | None]) -> int:
        """Return the bytes of ``out`` that leave this rank."""
        return sum(t.nbytes for r, t in enumerate(out) if r != self.rank and t is not None)

    def lengths(self, out: Sequence[Tensor | None], device: torch.device) -> list[int]:
        """Tell every rank the length of its message in ``out``; return those that this rank will receive."""
        device = device if self.ways is None else torch.device("cpu")
        sent = torch.tensor([0 if t is None else len(t) for t in out], device=device)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received.tolist()
