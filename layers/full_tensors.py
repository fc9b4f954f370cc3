"""The full tensors of a GPT, as stored in checkpoints."""

from __future__ import annotations

from caat.parallel.sharding import FullTensors
from layers.gpt import GPT
from layers.weights import gpt_weights


def full_tensors(model: GPT) -> list[FullTensors]:
    """Return the full tensors by Hugging Face name, each with how the model's layers shard it."""
    return [weight.full_tensors(model.sharding_of(weight)) for weight in gpt_weights(model.config)]
