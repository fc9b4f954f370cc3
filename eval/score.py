"""A trained model from its checkpoint, and the log-probability of every next token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.reading import load_weights
from layers.full_tensors import full_tensors
from layers.gpt import GPT


def load_model(
    folder: Path, mesh: Mesh, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> GPT:
    """The checkpoint's model on this mesh, ready for inference.

    Raises ``ValueError`` if the mesh has other shards than the model (where nothing is private the cut does
    not matter and any N goes), or if a tensor is missing, damaged or of another shape.
    """
    architecture = read_architecture(folder)
    check_shards(architecture, mesh.shards)
    shape, ratio = architecture.model, architecture.ratio
    if mesh.shards != architecture.shards:
        shape, ratio = replace(shape, padded_vocab_size=None), 1.0
    model = GPT.empty(shape, mesh, ratio, architecture.private_scale, device=device, dtype=dtype)
    load_weights(model, full_tensors(model), mesh.local_shards, folder)
    return model.eval()


def check_shards(architecture: Architecture, shards: int) -> None:
    """Raise ``ValueError`` if a model trained with other shards would be another function."""
    if shards != architecture.shards and not architecture.plain:
        raise ValueError(
            f"parallel.tensor={shards}, but the checkpoint was trained with {architecture.shards} shards at "
            f"sync.ratio={architecture.ratio}: with private channels another number of shards is another "
            f"model. Use parallel.tensor={architecture.shards}, on any number of processes that divides it"
        )


@torch.no_grad()
def next_token_log_probabilities(model: GPT, tokens: Tensor) -> Tensor:
    """log p(tokens[:, i + 1] | tokens[:, : i + 1]) in nats: int64 [batch, length] -> [batch, length - 1]."""
    return -model(tokens[:, :-1], tokens[:, 1:])
