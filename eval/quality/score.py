"""The log-probability of every next token."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.gpt import GPT


@torch.no_grad()
def next_token_log_probabilities(model: GPT, tokens: Tensor) -> Tensor:
    """Return log p(tokens[:, i + 1] | tokens[:, : i + 1]) in nats.

    Maps int64 [batch, length] to [batch, length - 1].
    """
    return -model(tokens[:, :-1], tokens[:, 1:])
