"""Checks that a run's checkpoints can be written, before the run is trained."""

from __future__ import annotations

import os
from pathlib import Path

from caat.planning.activations import WIDE
from caat.planning.costs import checkpoint_bytes
from caat.planning.layouts import kept_of, layout_of, outer_numbers, saved_per_weight
from caat.storage.disk import free_bytes, nearest_folder, size_text
from caat.training.checkpoint.folder import leftovers
from conf.checks import require
from conf.schema import Config
from launch.run.resume import given_folder


def check_space(config: Config, world: int, folder: Path | None = None) -> None:
    """Raise ``ValueError`` unless one more checkpoint fits: old ones are removed only after a new one.

    ``world`` is the number of processes, each of which saves what its messages to replicas and islands keep.
    Looks at the disk of ``folder``, else of ``run.dir``, else of the folder of all runs.
    """
    checkpoints = (folder or given_folder(config) or Path("outputs")) / "checkpoints"
    need = checkpoint_bytes(config.model, saved_per_weight(config))
    layout = layout_of(config, world)
    outer = outer_numbers(config, layout)
    need += world * WIDE * (sum(kept_of(config, layout)) + outer.residuals + outer.eager)
    # A save in the middle of an exchange.
    need += world * WIDE * outer.changes * (config.islands.lag > 0)
    there, free = nearest_folder(checkpoints), free_bytes(checkpoints)
    remedy = "give run.dir=... on another disk"
    require(os.access(there, os.W_OK | os.X_OK), f"{there}, for {checkpoints}, is not writable: {remedy}")
    # The next save removes what a killed save left behind.
    files = (file for left in leftovers(checkpoints) for file in left.rglob("*") if file.is_file())
    require(
        free is None or need <= free + sum(file.stat().st_size for file in files),
        f"a checkpoint of this run takes {size_text(need)}, but {size_text(free or 0)} are free in {there}, "
        f"for {checkpoints}: make room, or {remedy}",
    )
