"""The order of the channels of the residual stream: a ratio below 1 shares the first ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from layers.gpt import GPT

# Endings of the weights whose first dimension is the residual stream. It is the last one of other matrices.
WRITERS = ("o_proj.weight", "down_proj.weight")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")


@torch.inference_mode()
def channel_sizes(model: GPT, batches: Iterable[Tensor]) -> Tensor:
    """Return the mean square [h] of each channel in the streams that the blocks read, in float64.

    Each token's stream is divided by its root mean square, as a norm would, so the mean over the channels is
    1. ``model`` must have a single shard; ``batches`` are token numbers [batch, seq].
    """
    assert model.mesh.shards == 1
    total, streams = torch.zeros(model.config.hidden, dtype=torch.float64), 0

    def read(_: torch.nn.Module, inputs: tuple) -> None:
        nonlocal streams
        square = inputs[0].settled().shared.flatten(0, -2).double().square()
        total.add_((square / square.mean(-1, keepdim=True)).sum(0))
        streams += len(square)

    hooks = [block.register_forward_pre_hook(read) for block in model.blocks]
    try:
        for tokens in batches:
            model.hidden(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return total / streams


def reordered(name: str, weight: Tensor, order: Tensor) -> Tensor:
    """Return the full ``weight`` of that Hugging Face name with the channels of its stream in ``order`` [h].

    A model of which all weights are reordered computes the same function.
    """
    if name.endswith((*WRITERS, *NORMS)):
        return weight[order]
    return weight[:, order] if weight.dim() == 2 else weight
