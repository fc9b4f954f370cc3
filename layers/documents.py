"""Attention within documents: each token of a packed sequence attends to its own document only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caat.planning.activations import has_varlen_kernel
from conf.model import ModelConfig

# From version 2.12 on, torch takes fewer KV heads than query heads only if asked to.
GROUPED: dict[str, Any] = {"enable_gqa": True} if torch.__version__ >= "2.12" else {}


class Documents(NamedTuple):
    """The documents of a batch [batch, seq]. Every sequence begins with one, if only with a part of it."""

    # Where the documents begin in the flattened batch, and its end: int32 [documents + 1].
    borders: Tensor
    # Added to the attention logits, 0 or -inf: [batch, 1, seq, seq]. None: a kernel takes the borders.
    mask: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return causal attention [batch, heads, seq, head_dim] within each document."""
        if self.mask is not None:
            return F.scaled_dot_product_attention(q, k, v, self.mask, enable_gqa=q.shape[1] != k.shape[1])
        # Imported late: it brings torch's compiler with it, which takes seconds.
        from torch.nn.attention.varlen import varlen_attn

        batch, _, length, _ = q.shape
        q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))
        # The length of a sequence bounds that of a document, and is known without waiting for the GPU.
        where: dict[str, Any] = {"max_q": length, "max_k": length, "window_size": (-1, 0), **GROUPED}
        out = varlen_attn(q, k, v, self.borders, self.borders, **where)
        assert isinstance(out, Tensor)
        return out.unflatten(0, (batch, length)).transpose(1, 2)


def documents_of(borders: Tensor, x: Tensor, c: ModelConfig) -> tuple[Tensor, Documents]:
    """Return the position of each token of ``x`` [batch, seq, ...] in its document, and the documents."""
    batch, length = x.shape[:2]
    places = torch.arange(batch * length, dtype=torch.int32, device=x.device)
    number = torch.searchsorted(borders, places, right=True)
    positions = (places - borders.index_select(0, number - 1)).view(batch, length)
    # FlashAttention needs an Ampere GPU. Without a GPU, tensors on one are fake.
    old = x.is_cuda and torch.cuda.is_available() and torch.cuda.get_device_capability(x.device) < (8, 0)
    if has_varlen_kernel(c.head_size, x.element_size(), cuda=x.is_cuda) and not old:
        return positions, Documents(borders, None)
    number = number.view(batch, 1, length)
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    hidden = later | (number.unsqueeze(-1) != number.unsqueeze(-2))
    # From a mask of truth values, each layer would make one of numbers, and keep it for the backward pass.
    mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device)
    return positions, Documents(borders, mask.masked_fill_(hidden, float("-inf")))
