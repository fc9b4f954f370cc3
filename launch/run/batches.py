"""The batches of a run on this rank: of training, and of the held-out text."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from caat.data.loader import HeldOut, Loader, validation_batches
from caat.data.prefetch import Prefetch
from caat.data.prepared import Prepared
from caat.data.shards import TokenShards, sequence_count
from caat.parallel.mesh import Mesh
from caat.training.held_out import HeldOutText
from conf.schema import Config


def training_batches(
    config: Config, tokens: Prepared, mesh: Mesh, device: torch.device, *, position: int, seed: int
) -> Prefetch:
    """Return this replica's training batches from ``position`` on."""
    c = config.train
    loader = Loader(
        tokens.open("train"),
        c.sequence,
        c.micro_batch,
        c.global_batch,
        seed,
        shares=tokens.shares,
        position=position,
        **_place(config, mesh),
    )
    return Prefetch(loader, device)


def held_out_batches(
    config: Config, tokens: Prepared, split: str, mesh: Mesh, device: torch.device
) -> HeldOutText:
    """Return this replica's batches of a held-out split.

    They are the first ``train.eval_sequences`` sequences of each source for validation, all for a test.
    """
    c, place = config.train, _place(config, mesh)

    def read(shards: TokenShards):
        count = c.eval_sequences if split == "validation" else sequence_count(shards, c.sequence)
        batches = validation_batches(shards, c.sequence, c.micro_batch, count, **place)
        return (_moved(batch, device) for batch in batches)

    return HeldOutText(
        {name: partial(read, shards) for name, shards in tokens.open(split).items()},
        {name: float(share) for name, share in tokens.shares.items()},
    )


def _place(config: Config, mesh: Mesh) -> dict[str, Any]:
    masked = config.train.documents == "masked"
    return {"data_rank": mesh.replica, "data_size": mesh.replicas, "masked": masked}


def _moved(batch: HeldOut, device: torch.device) -> HeldOut:
    *parts, rows = batch
    return *(part.to(device) for part in parts), rows
