"""LAMB (arXiv 1904.00962), with the norms of whole matrices at every ZeRO stage and number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Piece(NamedTuple):
    """Numbers ``[offset, offset + size)`` of a weight in ``param_groups``, at most CHUNK, of this matrix."""

    matrix: int
    offset: int
    size: int


class LAMB(Optimizer):
    """Algorithm 2 of the paper, with the identity as phi: w <- w - lr |w| / |u| u, per matrix.

    u = m / (sqrt(v) + eps) + decay w, with the moments m and v of Adam, corrected for their bias. Where
    |w| or |u| is 0, the ratio is 1. The norms are of the whole matrices of :class:`Matrices`, whatever the
    layout. Norm weights and biases neither decay nor have a trust ratio, as in the authors' code, which
    excludes both together; the algorithm in the paper makes no exceptions.
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
            self._update_moments(weight, group)
        self.share_momentum()
        for weight, group in held:
            self._replace_gradient(weight, group)
        matrices = [(weight, group) for weight, group in held if group["matrices"]]
        if matrices:
            self.update_matrices(matrices)
        for weight, group in held:
            if not group["matrices"]:
                weight.add_(weight.grad, alpha=-group["lr"])

    def share_momentum(self) -> None:
        """Change the first moments between their update and their use."""

    def update_matrices(self, held: Sequence[tuple[Tensor, dict]]) -> None:
        """Update matrices whose gradients are u; ``held`` are weights with their groups. Collective."""
        w, u = self.norms([weight for weight, _ in held]).unbind(1)
        ratios = trust_ratio(w, u)
        for weight, group in held:
            for piece in self.pieces.get(weight, ()):
                update = cut(weight.grad, piece)
                cut(weight, piece).addcmul_(update, ratios[piece.matrix], value=-group["lr"])

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state.update({kind.name: torch.zeros_like(weight) for kind in self.kinds})
        return dict(state)

    @cached_property
    def pieces(self) -> dict[Tensor, list[Piece]]:
        """The pieces of matrices in each weight of ``param_groups``; padding belongs to none."""
        found: dict[Tensor, list[Piece]] = {}
        for name, ranges in self._matrices.ranges.items():
            place = self.places[name]
            if place.weight is None:
                continue
            pieces = found.setdefault(place.weight, [])
            for matrix, start, size in ranges:
                first, last = max(start, place.start), min(start + size, place.start + place.size)
                for at in range(first, last, CHUNK):
                    pieces.append(Piece(matrix, place.offset + at - place.start, min(CHUNK, last - at)))
        return found

    def _update_moments(self, weight: Tensor, group: dict) -> None:
        assert weight.grad is not None
        state = self.state_of(weight)
        first, second = group["betas"]
        state["exp_avg"].lerp_(weight.grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(weight.grad, weight.grad, value=1 - second)

    def _replace_gradient(self, weight: Tensor, group: dict) -> None:
        """Replace the gradient, which DeepSpeed no longer needs, by u."""
        assert weight.grad is not None
        state, step = self.state_of(weight), self.step_of(weight)
        first, second = group["betas"]
        tensors = weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]
        for w, g, m, v in zip(*(each.view(-1).split(CHUNK) for each in tensors), strict=True):
            root = (v / (1 - second**step)).sqrt_().add_(group["eps"])
            torch.div(m, root, out=g).div_(1 - first**step).add_(w, alpha=group["weight_decay"])

    def norms(self, weights: Sequence[Tensor], parts: Mapping[Tensor, Tensor] | None = None) -> Tensor:
        """Return |w| and |u| of every matrix that ``weights`` hold, in float64 [matrices, 2]. Collective.

        With ``parts``, bool like each weight: [matrices, 4], both norms of the true and then of the others.
        """
        columns = 2 if parts is None else 4
        squares = torch.zeros(self._matrices.count, columns, dtype=torch.float64, device=weights[0].device)
        for weight in weights:
            for piece in self.pieces.get(weight, ()):
                both: tuple[Tensor, ...] = cut(weight, piece), cut(weight.grad, piece)
                if parts is not None:
                    part = cut(parts[weight], piece)
                    both = *(each[part] for each in both), *(each[~part] for each in both)
                for column, numbers in enumerate(both):
                    wide = numbers.double()
                    squares[piece.matrix, column] += wide.dot(wide)
        # ZeRO flattens what it partitions. Replicas that keep whole matrices have whole sums already.
        if weights[0].dim() == 1:
            self._mesh.data.all_reduce(squares, "step", "control")
        self._mesh.tensor.all_reduce(squares, "backward", "norm")
        return squares.sqrt()


def trust_ratio(w: Tensor, u: Tensor) -> Tensor:
    """Return |w| / |u| in float32; 1 where either is 0."""
    return torch.where((w > 0) & (u > 0), w / u, 1.0).float()


def cut(numbers: Tensor | None, piece: Piece) -> Tensor:
    """Return the numbers of ``piece``."""
    assert numbers is not None
    return numbers.view(-1).narrow(0, piece.offset, piece.size)
