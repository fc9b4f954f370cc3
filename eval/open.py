"""Loads a trained model from its checkpoint for inference, on a given mesh or on the world's processes."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from pathlib import Path

import torch

from caat.parallel.mesh import Mesh
from caat.parallel.world import local_rank, local_world_size, world_size
from caat.supervision.control import Control
from caat.supervision.device import PRECISIONS, choose_device, start_process_group
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.reading import damage, load_weights
from layers.full_tensors import full_tensors
from layers.gpt import GPT


def load_model(
    folder: Path, mesh: Mesh, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> GPT:
    """Load the checkpoint's model on this mesh, ready for inference.

    Raises ``ValueError`` if the shard counts of mesh and model differ (a model without private channels
    allows any count), or if a tensor is missing, damaged or of another shape.
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
    """Raise ``ValueError`` if the model would be another function with this many ``shards``."""
    if shards != architecture.shards and not architecture.plain:
        raise ValueError(
            f"parallel.tensor={shards}, but the checkpoint was trained with {architecture.shards} shards at "
            f"sync.ratio={architecture.ratio}: with private channels, another shard count is another "
            f"model. Use parallel.tensor={architecture.shards}, on any number of processes that divides it"
        )


def open_model(folder: Path, device: str, precision: str, backend: str = "auto") -> GPT:
    """Open the checkpoint's model in as few replicas as its shards allow, on the world of the launcher.

    Collective. Raises the same ``ValueError`` as :func:`load_model`, and one if ``device`` is not available,
    if a file does not match its checksum (weights without a state.json have none), or if weights are not
    finite.
    """
    world = world_size()
    place = local_rank(), local_world_size(unknown=world)
    where = choose_device(device, *place, backend)
    shards = read_architecture(folder).shards
    if world == 1:
        mesh = Mesh(shards)
    else:
        start_process_group(where, backend=backend)
        mesh = Mesh.create(shards, gcd(shards, world))
    # If the run is still training, each rank may have found a different checkpoint.
    control = Control()
    folder = Path(control.gather(str(folder))[0])
    if (folder / "state.json").is_file() and (problems := damage(folder, control, optimizer=False)):
        raise ValueError(f"{folder} is damaged: {'; '.join(problems)}. Give another checkpoint")
    model = load_model(folder, mesh, where, PRECISIONS[precision])
    bad = [name for name, each in model.named_parameters() if not each.isfinite().all()]
    # Each rank holds its own shards: gather, so that all ranks raise together.
    if found := sorted({name for names in control.gather(bad) for name in names}):
        raise ValueError(f"{folder}: {found[0]} holds nan or inf: give an earlier checkpoint")
    return model
