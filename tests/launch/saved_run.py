"""A run folder with checkpoints that have everything but tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caat.storage.durable import write_json
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.folder import publish
from caat.training.checkpoint.state import SavedOptimizer, State, write_state
from launch.run.compose import compose

AT_200 = State(step=200, tokens=4096, position=64, sequence=256, seed=1, data="")
ADAMW = SavedOptimizer("adamw", 200, ())


def add_checkpoint(run: Path, step: int, *settings: str) -> Path:
    """Write a checkpoint like those of `model=tiny`, without tensors."""
    config = compose([*settings, "resume=never"])
    shards, ratio = config.parallel.tensor, config.sync.ratio
    aside = run / "checkpoints" / f"step-{step:08}.tmp"
    aside.mkdir(parents=True)
    architecture = Architecture(config.model, shards, ratio, int(ratio * 256), 1.0)
    checksums = {"config.json": write_json(aside / "config.json", architecture.to_json())}
    write_state(aside, replace(AT_200, step=step), ADAMW, checksums)
    folder = run / "checkpoints" / f"step-{step:08}"
    publish(aside, folder)
    (run / "config.yaml").touch()
    return folder


def steps(paths: list[Path]) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in paths]


def saved_run(folder: Path) -> Path:
    """Write a run with checkpoints after the steps 50, 100 and 150."""
    for step in (50, 100, 150):
        add_checkpoint(folder, step)
    return folder
