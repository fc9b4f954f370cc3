"""A process group that counts, and can replace, the messages that a library such as DeepSpeed sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.ring import ring_bytes
from caat.parallel.timeout import GROUP_TIMEOUT

BACKEND = "counted"
# Collectives of torch.distributed.ProcessGroup, and the position of the argument that holds the full message:
# the larger side of a gather or scatter. torch 2.13 renamed some of them; only those that exist are used.
MESSAGE = {
    "broadcast": 0,
    "reduce": 0,
    "allreduce": 0,
    "allreduce_coalesced": 0,
    "allgather": 0,
    "allgather_coalesced": 0,
    "_allgather_base": 0,
    "allgather_into_tensor_coalesced": 0,
    "all_gather_single": 0,
    "all_gather_single_coalesced": 0,
    "reduce_scatter": 1,
    "_reduce_scatter_base": 1,
    "reduce_scatter_tensor_coalesced": 1,
    "reduce_scatter_single": 1,
    "reduce_scatter_single_coalesced": 1,
    "alltoall": 1,
    "alltoall_base": 1,
    "all_to_all_single": 1,
    "send": 0,
}
# Methods whose messages are not counted.
UNCOUNTED = ("barrier", "monitored_barrier", "recv", "recv_anysource", "_start_coalescing", "_end_coalescing")

# Called with the method's name, its arguments and the bytes that this rank sends. A handler that sends the
# message itself returns its ``Work``.
Handle = Callable[[str, tuple[Any, ...], int], dist.Work | None]


class CountedGroup(dist.ProcessGroup):
    """Hands every collective to ``handle``, then to ``inner``, and returns its ``Work``.

    Streams, order and concurrency are those of ``inner``; each message costs one additional Python call.
    """

    def __init__(self, inner: dist.ProcessGroup, handle: Handle) -> None:
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]
        self.inner, self.handle = inner, handle
        self.gloo = dist.get_backend(inner) == "gloo"

    def getBackendName(self) -> str:
        return BACKEND

    @property
    def _device_types(self) -> list[torch.device]:
        """The devices of messages, one of which torch chooses for a barrier."""
        return self.inner._device_types

    # When a group is created on a GPU, torch asks it for its backend and connects that if it can be split.
    # The backend of ``inner`` is already connected. So until the group is made, it acts as its own backend,
    # which cannot be split.
    made = supports_splitting = False

    def _get_backend(self, device: torch.device) -> Any:
        return self.inner._get_backend(device) if self.made else self


def _counted(name: str) -> Callable[..., Any]:
    def call(self: CountedGroup, *arguments: Any, **named: Any) -> Any:
        size = sum(part.nbytes for part in _tensors(arguments[MESSAGE[name]]))
        root = getattr(arguments[1], "rootRank", 0) if len(arguments) > 1 else 0
        sent = sent_bytes(name, size, self.size(), is_root=root == self.rank(), gloo=self.gloo)
        work = self.handle(name, arguments, sent)
        return getattr(self.inner, name)(*arguments, **named) if work is None else work

    return call


def sent_bytes(name: str, size: int, ranks: int, *, is_root: bool = False, gloo: bool = False) -> int:
    """Return the bytes that a rank sends in a collective with a full message of ``size`` bytes.

    An all-reduce counts as a ring, of which each rank sends its share twice; gathers and scatters count a
    rank's own share once for every other rank. ``is_root``: of a reduce or broadcast. ``gloo``: its
    reduce-scatter sends as much as an all-reduce. Rounded up.
    """
    if name.startswith("allreduce") or (gloo and "reduce_scatter" in name):
        return ring_bytes(size, ranks)
    if name == "reduce":
        return 0 if is_root else size
    if name == "broadcast":
        return size if is_root else 0
    if name == "send":
        return size
    return -(-(ranks - 1) * size // ranks)


def _passed_on(name: str) -> Callable[..., Any]:
    return lambda self, *arguments, **named: getattr(self.inner, name)(*arguments, **named)


def _tensors(message: Tensor | Sequence) -> Iterator[Tensor]:
    if isinstance(message, Tensor):
        yield message
    else:
        for part in message:
            yield from _tensors(part)


for _name in MESSAGE:
    if hasattr(dist.ProcessGroup, _name):
        setattr(CountedGroup, _name, _counted(_name))
for _name in UNCOUNTED:
    setattr(CountedGroup, _name, _passed_on(_name))


def new_counted_group(ranks: list[int], inner: dist.ProcessGroup, handle: Handle) -> dist.ProcessGroup:
    """Return a group of the same ``ranks`` as ``inner``; on other ranks, torch's non-member object.

    Collective over the world, like ``dist.new_group``.
    """
    if not hasattr(dist.Backend, BACKEND.upper()):
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu", "cuda"])
    group = dist.new_group(ranks, GROUP_TIMEOUT, BACKEND, pg_options=(inner, handle))
    if isinstance(group, CountedGroup):
        group.made = True
    return group


def _create(options: Any, inner_and_handle: tuple[dist.ProcessGroup, Handle]) -> CountedGroup:
    return CountedGroup(*inner_and_handle)
