"""Chooses and verifies the checkpoint that all ranks resume from or take their initial weights from."""

from __future__ import annotations

import sys
from pathlib import Path

from caat.supervision.control import Control
from caat.supervision.watchdog import Watchdog
from caat.training.checkpoint.folder import clear_leftovers, roll_back
from caat.training.checkpoint.reading import damage
from conf.schema import Config
from launch.run.initial import initial_checkpoint
from launch.run.resume import checkpoints_to_try


class DamagedError(Exception):
    """No intact checkpoint can be used to start the run."""


def choose_checkpoint(config: Config, run: Path, control: Control, watchdog: Watchdog) -> Path | None:
    """Return the best intact checkpoint to resume from; None: train from the start. Collective.

    If the checkpoint is in the run's own folder, it becomes the latest and later ones are set aside. Raises
    :class:`DamagedError` on all ranks if all are damaged, or if one is and ``checkpoint.on_damage=stop``.
    """
    candidates = control.gather([str(path) for path in checkpoints_to_try(config, run)])[0]
    for candidate in map(Path, candidates):
        watchdog.beat(f"verifying {candidate}")
        problems = damage(candidate, control, tick=watchdog.tick)
        if not problems:
            _make_latest(candidate, run, control)
            return candidate
        what = f"{candidate} is damaged: {'; '.join(problems)}"
        if config.checkpoint.on_damage == "stop":
            previous = ", or checkpoint.on_damage=previous to use the last good one"
            raise DamagedError(
                f"{what}. Give another checkpoint with resume=...{previous * (len(candidates) > 1)}"
            )
        if control.rank == 0:
            print(f"caat: WARNING: {what}. Trying the one before it", file=sys.stderr, flush=True)
    if candidates:
        raise DamagedError(
            f"all {len(candidates)} checkpoints to resume from are damaged, up to {candidates[-1]}: give a "
            "good one with resume=..., or start a new run"
        )
    if control.rank == 0:
        clear_leftovers(run / "checkpoints")
    return None


def choose_initial(config: Config, control: Control, watchdog: Watchdog) -> Path | None:
    """Return the verified checkpoint of ``initialize``, if set. Collective; raises :class:`DamagedError`."""
    if config.initialize is None:
        return None
    # If that run is still training, each rank could find a different latest checkpoint.
    checkpoint = Path(control.gather(str(initial_checkpoint(config.initialize)))[0])
    watchdog.beat(f"verifying {checkpoint}")
    if problems := damage(checkpoint, control, optimizer=False, tick=watchdog.tick):
        raise DamagedError(f"{checkpoint} is damaged: {'; '.join(problems)}. Give another initialize=...")
    return checkpoint


def _make_latest(checkpoint: Path, run: Path, control: Control) -> None:
    if control.rank == 0 and checkpoint.parent.resolve() == (run / "checkpoints").resolve():
        for aside in roll_back(checkpoint.parent, checkpoint):
            print(f"caat: set aside {aside}, which is later than the resumed checkpoint", file=sys.stderr)
    # No rank may save before this is done.
    control.gather(None)
