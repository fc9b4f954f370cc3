"""Train with other ways to synchronise than caat's own. docs/ablation.md compares them at equal bytes.

python docs/ablation/variants.py rotating sync.ratio=0.25 run.dir=...    # settings as in `caat pretrain`

One process holds every shard's stream in full, so it can simulate any way of mixing them. The checkpoint
does not record the variant: other commands would run its weights with the usual channels. `own_norms` needs
several processes: it is caat without the sum of the norms' gradients. Start it with
torchrun --nproc-per-node 2 and train.check_replicas_every=0. `scaled_start` multiplies only the initial
weights of private channels by the square root of the number of shards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import launch.run.build
import layers.norm
from caat.parallel.mesh import Mesh
from caat.parallel.partial.linear import column_parallel
from conf.checks import require
from conf.model import ModelConfig
from launch.command.errors import user_errors
from launch.pretrain import main
from launch.run.compose import compose
from layers import GPT
from layers.block import norms_of
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.loss import mask_padding, vocab_parallel_cross_entropy
from layers.norm import RMSNorm
from layers.rotary import rotary_angles
from layers.weights import FullWeights

# (index of the synchronisation, number of synchronisations, ratio) -> (first channel, number of channels),
# the latter two as fractions of all channels. Every pattern sends `ratio` on average.
Window = Callable[[int, int, float], tuple[float, float]]


def fixed(number: int, count: int, ratio: float) -> tuple[float, float]:
    """The pattern of the paper and of caat: the same channels everywhere."""
    return 0.0, ratio


def rotating(number: int, count: int, ratio: float) -> tuple[float, float]:
    """Each synchronisation starts where the previous one ended, so that no channel stays private."""
    return number * ratio % 1, ratio


def periodic(number: int, count: int, ratio: float) -> tuple[float, float]:
    """One synchronisation in eight is full; the others share the remaining bytes."""
    return (0.0, 1.0) if number % 8 == 3 else (0.0, (8 * ratio - 1) / 7)


def attention(number: int, count: int, ratio: float) -> tuple[float, float]:
    """Synchronise only after attention."""
    return 0.0, 0.0 if number % 2 else 2 * ratio


def mlp(number: int, count: int, ratio: float) -> tuple[float, float]:
    """Synchronise only after the MLP."""
    return 0.0, 2 * ratio if number % 2 else 0.0


def ends(number: int, count: int, ratio: float) -> tuple[float, float]:
    """1.5 times the ratio in the outer half of the layers, 0.5 times in the inner half."""
    return 0.0, ratio * (1.5 if number < count // 4 or number >= count - count // 4 else 0.5)


def middle(number: int, count: int, ratio: float) -> tuple[float, float]:
    """1.5 times the ratio in the inner half of the layers, 0.5 times in the outer half."""
    return 0.0, 2 * ratio - ends(number, count, ratio)[1]


def exact(parts: Tensor) -> Tensor:
    """[r, ...] -> [...]: the exact sum, as in caat."""
    return parts.sum(0)


def int8(parts: Tensor) -> Tensor:
    """Round each part and the sum to 8-bit integers, as sync.wire_dtype=int8 does between processes."""
    return _rounded(int8_parts(parts))


def int8_parts(parts: Tensor) -> Tensor:
    """Round each part to 8-bit integers, but not the sum."""
    return _rounded(parts).sum(0)


def _rounded(x: Tensor) -> Tensor:
    """Round [..., k] to 8-bit integers with one scale per token, absmax / 127."""
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / step) * step


def bf16(parts: Tensor) -> Tensor:
    """Send bfloat16, sum in float32, and round once."""
    return parts.bfloat16().float().sum(0).bfloat16().to(parts.dtype)


def bf16_sums(parts: Tensor) -> Tensor:
    """Send bfloat16 and round after every addition, as a ring all-reduce does."""
    total = parts[0].bfloat16()
    for part in parts[1:]:
        total = total + part.bfloat16()
    return total.to(parts.dtype)


PATTERNS = {window.__name__: window for window in (fixed, rotating, periodic, attention, mlp, ends, middle)}
# Sums in the forward and backward pass.
SUMS = {
    "int8": (int8, int8),
    "int8_parts": (int8_parts, int8_parts),
    "bf16": (bf16, bf16),
    "bf16_sums": (bf16_sums, bf16_sums),
    "bf16_sums_backward": (bf16, bf16_sums),
}


class _Sum(torch.autograd.Function):
    """Replace each shard of [r, ..., k] by the sum of all; backward does the same with the gradients."""

    @staticmethod
    def forward(ctx, parts: Tensor, forward: Callable, backward: Callable):  # type: ignore[override]
        ctx.backward_sum = backward
        return forward(parts).expand_as(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return ctx.backward_sum(gradient).expand_as(gradient), None, None


class VariedGPT(GPT):
    """A GPT with caat's weights that holds every shard's stream [r, batch, seq, h] in full."""

    window: Window = staticmethod(fixed)
    scaled_start = False
    sums: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = (exact, exact)

    @staticmethod
    def empty(config: ModelConfig, mesh: Mesh, *arguments, **kw) -> GPT:  # type: ignore[override]
        assert mesh.processes == 1, "variants are for one process"
        model = GPT.empty(config, mesh, *arguments, **kw)
        model.__class__ = VariedGPT
        return model

    def fill(self, full: FullWeights) -> GPT:
        """Fill the weights as GPT does; with ``scaled_start``, scale those of private channels."""
        super().fill(full)
        if self.scaled_start:
            for block in self.blocks:
                for row in (block.attention.output, block.mlp.down):
                    row.weight.detach()[self.shared_channels :] *= self.mesh.shards**0.5
        return self

    def forward(self, tokens: Tensor, targets: Tensor | None = None, borders: None = None) -> Tensor:
        assert borders is None, "documents are not kept apart: leave train.documents out"
        embedded = self.embedding(tokens)
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        angles = rotary_angles(places, self.config, embedded.dtype)
        x = embedded.expand(self.mesh.shards, *embedded.shape)
        for number, block in enumerate(self.blocks):
            vectors = dict(bias=block.attention.qkv.bias, gammas=[n.weight for n in norms_of([block])[1:-1]])
            a = block.attention.core(_read(x, block.attention_norm, block.attention.qkv), *angles, **vectors)
            x = x + self._mixed(a, block.attention.output, 2 * number)
            a = block.mlp.core(_read(x, block.mlp_norm, block.mlp.gate_up))
            x = x + self._mixed(a, block.mlp.down, 2 * number + 1)
        logits = _read(x, self.norm, self.head)
        if targets is None:
            return mask_padding(logits, self.config.vocab_size, self.mesh)
        return vocab_parallel_cross_entropy(logits, targets, self.config.vocab_size, self.mesh)

    def _mixed(self, a: Tensor, row: RowParallelLinear, number: int) -> Tensor:
        """Map [..., r · c] to each shard's product [r, ..., h], summed over the shards inside the window."""
        r, h = self.mesh.shards, row.out_features
        products = torch.einsum(
            "...rc,hrc->r...h", a.unflatten(-1, (r, -1)), row.weight.unflatten(-1, (r, -1))
        )
        start, size = (int(part * h) for part in self.window(number, 2 * len(self.blocks), self.ratio))
        turned = products.roll(-start, -1)
        shared = _Sum.apply(turned[..., :size], *self.sums)
        return torch.cat([shared, turned[..., size:] * row.private_scale], -1).roll(start, -1)


def _read(x: Tensor, norm: RMSNorm, column: ColumnParallelLinear) -> Tensor:
    return column_parallel(F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps), column.weight)


def run(name: str, settings: list[str]) -> int:
    """Train the variant ``name``, write its name to the run folder, and return the exit status."""
    window = PATTERNS.get(name, fixed)
    with user_errors():
        config = compose(settings)
        # caat would start other processes without the variant.
        alone = config.launch.processes == 1 and config.launch.max_restarts == 0
        require(
            alone, "leave launch.processes and launch.max_restarts out: torchrun starts several processes"
        )
        require(config.train.documents == "packed", "variants do not keep documents apart: leave it out")
        count = 2 * config.model.layers
        for ratio in config.sync.schedule.values():
            require(
                all(0 <= window(number, count, ratio)[1] <= 1 for number in range(count)),
                f"sync.ratio={ratio} cannot be shared out by {name}: give sync.ratio=0.25 or 0.5",
            )
    if name == "own_norms":
        layers.norm.sum_gradient = lambda x, *_: x  # type: ignore[assignment]
    else:
        VariedGPT.window = staticmethod(window)
        VariedGPT.scaled_start = name == "scaled_start"
        VariedGPT.sums = SUMS.get(name, (exact, exact))
        launch.run.build.GPT = VariedGPT  # type: ignore[misc]
    status = main(settings)
    if status == 0:
        (Path(config.run.dir) / "variant.json").write_text(json.dumps(name) + "\n")
    return status


if __name__ == "__main__":
    known = [*PATTERNS, *SUMS, "own_norms", "scaled_start"]
    if len(sys.argv) < 3 or sys.argv[1] not in known or not any(a.startswith("run.dir=") for a in sys.argv):
        sys.exit(f"usage: python {sys.argv[0]} VARIANT run.dir=... [setting=value ...]\n{', '.join(known)}")
    sys.exit(run(sys.argv[1], sys.argv[2:]))
