"""The save policy: when checkpoints are written, and whether training continues if that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from caat.supervision.control import Control
from caat.supervision.signals import StopRequest
from caat.training.checkpoint.saver import SaveError, Saver
from caat.training.checkpoint.state import State
from conf.schema import CheckpointConfig


class SavePolicy:
    """Saves at intervals of steps and minutes, before a stop, before benchmarks, and at the end.

    ``say`` prints a warning.
    """

    def __init__(
        self, saver: Saver, settings: CheckpointConfig, control: Control, say: Callable[[str], None]
    ) -> None:
        self._saver, self._settings, self._control, self._say = saver, settings, control, say
        self._due = False
        self._too_soon = True

    def agree(self, request: StopRequest) -> int:
        """Return the signal that any rank has received, 0 if none. Collective.

        The ranks also agree on whether a save is due, and whether a save in flight has failed.
        """
        stop, save_failed, too_soon = self._control.maximum(
            request.number, int(self._saver.failed), int(not self._saver.due)
        )
        self._too_soon = bool(too_soon)
        for problem in self._saver.after.problems():
            self._say(f"WARNING: {problem}")
        if save_failed:
            self.wait()
        return stop

    def note_due(self, step: int, benchmark: bool) -> None:
        """Note whether a save is due at this step. Benchmarks take long and may fail, so save before them."""
        every = self._settings.every
        self._due = self._due or benchmark or (every > 0 and step % every == 0)

    def should_save(self, *, skipped: bool, must: bool) -> bool:
        """Return whether to save now; ``must``: training ends here.

        While steps are skipped, the weights may be wrong, and the previous checkpoint is the better one.
        """
        return must or ((self._due or not self._too_soon) and not skipped)

    def save(self, state: State, *, must: bool) -> None:
        """Save ``state``. Collective.

        Raises :class:`SaveError` if that fails and training ends here (``must``) or
        ``checkpoint.on_failure`` is stop.
        """
        state = replace(state, by_time=not (must or self._due))
        self._due = False
        # A failed earlier save must not block this one.
        self.wait()
        if must:
            self._saver.save(state)
            self._saver.wait()
        else:
            self._warned(partial(self._saver.save, state))

    def wait(self) -> None:
        """Wait for the save in flight; a failure is a warning, or raised as in :meth:`save`."""
        self._warned(self._saver.wait)

    def _warned(self, save: Callable[[], None]) -> None:
        try:
            save()
        except SaveError as error:
            if self._settings.on_failure == "stop":
                raise
            self._say(
                f"WARNING: checkpoint not written ({error}). Training continues and retries at the next "
                "save; progress since the last checkpoint is not saved yet. Earlier checkpoints are intact"
            )
