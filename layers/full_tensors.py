"""The full tensors of a GPT as checkpoints hold them."""

from __future__ import annotations

from caat.training.checkpoint.tensors import FullTensors
from layers.gpt import GPT
from layers.weights import gpt_weights


def full_tensors(model: GPT) -> list[FullTensors]:
    """By Hugging Face name, each with how the model's layers cut it."""
    found = []
    for weight in gpt_weights(model.config):
        sharding = model.sharding_of(weight)
        dim, sizes = (None, ()) if sharding is None else (sharding.dim, sharding.sizes)
        found.append(
            FullTensors(weight.parameter, weight.names, weight.shapes, model.mesh.shards, dim, sizes)
        )
    return found
