"""A trained model on the processes of this world: from a checkpoint folder, ready to be used."""

from __future__ import annotations

import os
from math import gcd
from pathlib import Path

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.reading import damage
from caat.training.control import Control
from caat.training.device import PRECISIONS, choose_device, start_process_group
from eval.score import load_model
from layers.gpt import GPT


def open_model(folder: Path, device: str, precision: str) -> GPT:
    """The checkpoint's model in as few replicas as its shards allow; joins the world that torchrun describes.

    Collective. Raises ``ValueError`` as :func:`~eval.score.load_model`, if ``device`` is not there, and if
    a file does not have its checksum; weights without a state.json have none.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    where = choose_device(device, *place)
    shards = read_architecture(folder).shards
    if world == 1:
        mesh = Mesh(shards)
    else:
        start_process_group(where)
        mesh = Mesh.create(shards, gcd(shards, world))
    # Of a run that is still training, each rank may have found another one.
    control = Control()
    folder = Path(control.gather(str(folder))[0])
    if (folder / "state.json").is_file() and (problems := damage(folder, control, optimizer=False)):
        raise ValueError(f"{folder} is damaged: {'; '.join(problems)}. Give another checkpoint")
    return load_model(folder, mesh, where, PRECISIONS[precision])
