"""The numbers that islands exchange together, and what each exchange needs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from caat.compression.codec import Shapes
from caat.parallel.background import Wait
from caat.parallel.reduction import Reduction


@dataclass
class Message:
    """Numbers that are exchanged together: parameters of one fragment of the model.

    ``weights`` are live flat views of the master weights, by parameter; ``anchor`` and ``velocity`` hold the
    same numbers one after the other. During an exchange ``own`` is this island's change, and ``change``
    becomes the sum of all, then ``mean`` the mean.
    """

    fragment: int
    weights: Mapping[str, Tensor]
    # Whether all tensor-parallel processes hold these numbers.
    replicated: bool
    # The shapes of the parameters if they are held whole; (): they are ranges.
    shapes: Shapes
    # The numbers that only pad the vocabulary.
    padding: Sequence[slice]
    anchor: Tensor
    velocity: Tensor | None
    # None: there is one island.
    reduction: Reduction | None = None
    change: Tensor | None = None
    own: Tensor | None = None
    mean: Tensor | None = None
    # Set while an exchange is in flight, with the step after which it started.
    wait: Wait | None = None
    started: int = 0
    # Only with eager outer steps: the weights that this island's change is counted from, and the velocity of
    # its share of the changes.
    origin: Tensor | None = None
    own_velocity: Tensor | None = None

    def own_weights(self) -> Tensor:
        """Return a copy of the master weights, in the order of the anchor."""
        return self.gather({name: weight.detach() for name, weight in self.weights.items()})

    def gather(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return a copy of the flat ``values`` of the weights, by parameter, in the order of the anchor."""
        return torch.cat([values[name] for name in self.weights]) if self.weights else self.anchor.clone()

    def split(self, flat: Tensor) -> Sequence[Tensor]:
        """Return the part of ``flat`` of each parameter."""
        return flat.split([weight.numel() for weight in self.weights.values()])

    def set_weights(self, flat: Tensor) -> None:
        """Copy ``flat`` into the master weights."""
        for weight, values in zip(self.weights.values(), self.split(flat), strict=True):
            weight.data.copy_(values)


def messages_of(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    sharded: set[str],
    padding: Mapping[str, Sequence[slice]],
    fragments: int,
    fragment_of: Callable[[str], int],
    momentum: bool,
) -> list[Message]:
    """Return the messages of all ``weights``, whose whole parameters have ``shapes``.

    ``padding``: which numbers of ``weights`` only pad the vocabulary. Each fragment has one of the
    ``sharded`` parameters and one of the others. Under ZeRO a rank may hold no number of a message, but all
    ranks have the same messages.
    """
    device = next((weight.device for weight in weights.values() if weight.numel()), torch.device("cpu"))
    messages = []
    for fragment in range(fragments):
        for replicated in (False, True):
            own = {
                name: weight.view(-1)
                for name, weight in weights.items()
                if weight.numel() and fragment_of(name) == fragment and (name in sharded) != replicated
            }
            flat = [weight.detach() for weight in own.values()]
            anchor = torch.cat(flat) if flat else torch.empty(0, device=device)
            velocity = torch.zeros_like(anchor) if momentum else None
            whole = all(weight.numel() == prod(shapes[name]) for name, weight in own.items())
            known = [shapes[name] for name in own] if whole else ()
            messages.append(
                Message(fragment, own, replicated, known, _within(padding, own), anchor, velocity)
            )
    return messages


def _within(padding: Mapping[str, Sequence[slice]], weights: Mapping[str, Tensor]) -> list[slice]:
    """Return where the ``padding`` of ``weights`` is within a message, which has them one after the other."""
    found, at = [], 0
    for name, weight in weights.items():
        found += [slice(at + each.start, at + each.stop) for each in padding.get(name, ())]
        at += weight.numel()
    return found
