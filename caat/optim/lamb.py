"""LAMB (arXiv 1904.00962), with the norms of whole matrices at every ZeRO stage and number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from caat.optim.groups import decay_groups
from caat.optim.kinds import DECLARED
from caat.optim.matrices import Matrices
from caat.optim.optimizer import Optimizer
from caat.parallel.mesh import Mesh
from conf.optim import OptimConfig

# Numbers that are updated, or added up in float64, at once: it bounds the memory of temporaries.
CHUNK = 2**20


class _Piece(NamedTuple):
    """Numbers ``[offset, offset + size)`` of a weight in ``param_groups`` are of this matrix."""

    matrix: int
    offset: int
    size: int


class LAMB(Optimizer):
    """Algorithm 2 of the paper, with the identity as phi: w <- w - lr |w| / |u| u, per matrix.

    u = m / (sqrt(v) + eps) + decay w, with the moments m and v of Adam, corrected for their bias. Where
    |w| or |u| is 0, the ratio is 1. The norms are of the whole matrices of :class:`Matrices`, whatever the
    layout. Norm weights neither decay nor have a trust ratio, as in the authors' code, which excludes both
    together; the algorithm in the paper makes no exceptions.
    """

    name = "lamb"
    kinds = DECLARED[name]

    def __init__(self, model: nn.Module, optim: OptimConfig, mesh: Mesh) -> None:
        super().__init__(
            decay_groups(model, optim.weight_decay),
            {"lr": optim.lr, "betas": (optim.betas[0], optim.betas[1]), "eps": optim.eps},
        )
        self._mesh = mesh
        self._matrices = Matrices.of(model, mesh.local)

    @torch.no_grad()
    def update(self) -> None:
        held = [
            (weight, group)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        for weight, group in held:
            self._replace_gradient(weight, group)
        matrices = [weight for weight, group in held if not group["replicated"]]
        ratios = self._trust_ratios(matrices) if matrices else torch.empty(0)
        for weight, group in held:
            if group["replicated"]:
                weight.add_(weight.grad, alpha=-group["lr"])
                continue
            for piece in self._pieces.get(weight, ()):
                update = _cut(weight.grad, piece)
                _cut(weight, piece).addcmul_(update, ratios[piece.matrix], value=-group["lr"])

    def shared_state(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state.update({kind.name: torch.zeros_like(weight) for kind in self.kinds})
        return dict(state)

    @cached_property
    def _pieces(self) -> dict[Tensor, list[_Piece]]:
        """What each weight in ``param_groups`` holds of which matrices; padding is in no piece."""
        found: dict[Tensor, list[_Piece]] = {}
        for name, ranges in self._matrices.ranges.items():
            place = self.places[name]
            if place.weight is None:
                continue
            pieces = found.setdefault(place.weight, [])
            for matrix, start, size in ranges:
                first, last = max(start, place.start), min(start + size, place.start + place.size)
                if first < last:
                    pieces.append(_Piece(matrix, place.offset + first - place.start, last - first))
        return found

    def _replace_gradient(self, weight: Tensor, group: dict) -> None:
        """Update the moments and replace the gradient, which DeepSpeed no longer needs, by u."""
        assert weight.grad is not None
        state, step = self.shared_state(weight), self.step_of(weight)
        first, second = group["betas"]
        tensors = weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]
        for w, g, m, v in zip(*(each.view(-1).split(CHUNK) for each in tensors), strict=True):
            m.lerp_(g, 1 - first)
            v.mul_(second).addcmul_(g, g, value=1 - second)
            root = (v / (1 - second**step)).sqrt_().add_(group["eps"])
            torch.div(m, root, out=g).div_(1 - first**step).add_(w, alpha=group["weight_decay"])

    def _trust_ratios(self, weights: Sequence[Tensor]) -> Tensor:
        """Return |w| / |u| of every matrix that ``weights`` hold, in float32. Collective over the mesh."""
        squares = torch.zeros(self._matrices.count, 2, dtype=torch.float64, device=weights[0].device)
        for weight in weights:
            for piece in self._pieces.get(weight, ()):
                squares[piece.matrix, 0] += _square_sum(_cut(weight, piece))
                squares[piece.matrix, 1] += _square_sum(_cut(weight.grad, piece))
        # ZeRO flattens what it partitions. Replicas that keep whole matrices have whole sums already.
        if weights[0].dim() == 1:
            self._mesh.data.all_reduce(squares, "step", "control")
        self._mesh.tensor.all_reduce(squares, "backward", "norm")
        w, u = squares.sqrt().unbind(1)
        return torch.where((w > 0) & (u > 0), w / u, 1.0).float()


def _cut(numbers: Tensor | None, piece: _Piece) -> Tensor:
    assert numbers is not None
    return numbers.view(-1).narrow(0, piece.offset, piece.size)


def _square_sum(numbers: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=numbers.device)
    for chunk in numbers.split(CHUNK):
        wide = chunk.double()
        total += wide.dot(wide)
    return total
