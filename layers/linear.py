"""Column- and row-parallel linears. A process stores its r shards side by side in one weight.

Shapes, with r local shards of N (out_local = out · r / N, and in_local likewise):

| layer  | weight          | forward                          | input gradient            |
|--------|-----------------|----------------------------------|---------------------------|
| column | [out_local, in] | [r, ..., in] -> [..., out_local] | local, no all-reduce      |
| row    | [out, in_local] | [..., in_local] -> stream of out | shared part: one all-reduce |

Weight gradients are local in both layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from caat.parallel.mesh import Mesh
from caat.parallel.partial.linear import column_parallel, norm_column_parallel, row_parallel
from caat.parallel.partial.stream import Arriving, Stream, WholeStream
from caat.parallel.sharding import Sharding
from conf.partition import shared_channels
from layers.norm import Normed


def initial_shards(sharding: Sharding, shapes: list[tuple[int, int]], mesh: Mesh) -> nn.Parameter:
    """Initialise the full matrices like ``nn.Linear`` and return this process's shards of them.

    The numbers come from torch's default generator: with the same seed, all processes draw the same matrices.
    """
    full = [nn.Linear(inputs, outputs, bias=False).weight.detach() for outputs, inputs in shapes]
    return nn.Parameter(sharding.cut(full, mesh.local_shards))


class ColumnParallelLinear(nn.Module):
    """Linear with output features split over the shards: [r, ..., in] -> [..., out_local].

    Each local shard has its own input. The ``bias``, if there is one, is split like the output.
    ``out_features`` may be several numbers, for projections of the same input fused into one GEMM (q, k, v):
    each is split separately, and shard i's output holds its slice of each. Raises ``ValueError`` if N does
    not divide an output size.
    """

    def __init__(
        self, in_features: int, out_features: int | Sequence[int], mesh: Mesh, *, bias: bool = False
    ) -> None:
        super().__init__()
        sizes = (out_features,) if isinstance(out_features, int) else tuple(out_features)
        self.sharding = Sharding(0, sizes, mesh.shards)
        self.sharding.check("out_features")
        self.in_features = in_features
        # Set by GPT.compile_cores: compile the pointwise work around the GEMM.
        self.compiled = False
        self.weight = initial_shards(self.sharding, [(size, in_features) for size in sizes], mesh)
        local = sum(sizes) // mesh.shards * mesh.local
        self.bias = nn.Parameter(torch.zeros(local)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self._with_bias(column_parallel(x, self.weight))

    def after_norm(self, x: Normed) -> tuple[Stream | WholeStream, Tensor]:
        """Apply the norm and the linear in one step; return the residual stream and [..., out_local]."""
        stream, y, _ = norm_column_parallel(x.stream, x.weight, self.weight, x.eps)
        return stream, self._with_bias(y)

    def unscaled_after_norm(self, x: Normed) -> tuple[Stream | WholeStream, Tensor, Tensor | None]:
        """Like :meth:`after_norm`, but leave the bias and, if compiled, the factor 1 / rms to what follows.

        The third result is that factor [..., r], or None if the product already includes it.
        """
        return norm_column_parallel(x.stream, x.weight, self.weight, x.eps, self.compiled)

    def _with_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={sum(self.sharding.sizes)}, local out={len(self.weight)}"


class RowParallelLinear(nn.Module):
    """Bias-free linear with input features split over the shards, followed by partial synchronisation.

    ([..., in_local], stream) -> the :class:`~caat.parallel.partial.stream.Stream` with the product added;
    its ``.stack()`` is a plain tensor. The first ``ratio * out_features`` channels are summed over all N
    shards; the others stay private, times ``private_scale`` (the paper's sqrt(N) gives them the variance of
    a sum of N terms). Raises ``ValueError`` for a ratio outside [0, 1] or if N does not divide the input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mesh: Mesh,
        ratio: float = 1.0,
        private_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.sharding = Sharding(1, (in_features,), mesh.shards)
        self.sharding.check("in_features")
        self.mesh = mesh
        self.out_features = out_features
        self.set_ratio(ratio)
        self.private_scale = private_scale
        # See ColumnParallelLinear.
        self.compiled = False
        self.weight = initial_shards(self.sharding, [(out_features, in_features)], mesh)

    def forward(self, a: Tensor, x: Stream | WholeStream) -> Stream:
        """Add the product of ``a`` [..., in_local] to the residual stream ``x`` and wait for its sum.

        Raises ``ValueError`` like :meth:`before_norm`.
        """
        return self.before_norm(a, x).settled()

    def before_norm(self, a: Tensor, x: Stream | WholeStream) -> Arriving | WholeStream:
        """Like :meth:`forward`, but leaves the sum in flight: the norm and linear that read the result wait.

        Raises ``ValueError`` if ``x`` and this layer have different numbers of shared channels.
        """
        if x.shared_channels != self.shared_channels:
            raise ValueError(
                f"the stream shares {x.shared_channels} channels, but this layer {self.shared_channels}: "
                "enter() and every row-parallel layer need the same ratio"
            )
        return row_parallel(a, self.weight, x, self.private_scale, self.mesh, compiled=self.compiled)

    def set_ratio(self, ratio: float) -> None:
        """Synchronise this fraction of the channels from the next forward pass on. No weight changes."""
        self.shared_channels = shared_channels(self.out_features, ratio, self.mesh.shards)

    def extra_repr(self) -> str:
        return (
            f"in={self.sharding.sizes[0]}, out={self.out_features}, "
            f"shared={self.shared_channels}, local in={self.weight.shape[1]}"
        )
