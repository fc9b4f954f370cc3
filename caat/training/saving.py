"""When a checkpoint is written, and whether training goes on where that fails."""

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
    """Saves every so many steps and minutes, before a stop, before benchmarks, and at the end.

    ``say`` shows a warning to whoever watches the run.
    """

    def __init__(
        self, saver: Saver, settings: CheckpointConfig, control: Control, say: Callable[[str], None]
    ) -> None:
        self._saver, self._settings, self._control, self._say = saver, settings, control, say
        self._due = False
        self._too_soon = True

    def agree(self, request: StopRequest) -> int:
        """The signal that some rank was sent, 0 if none. Collective.

        The ranks also agree on whether it is time to save, and learn of a save in flight that failed.
        """
        stop, save_failed, too_soon = self._control.maximum(
            request.number, int(self._saver.failed), int(not self._saver.due)
        )
        self._too_soon = bool(too_soon)
        if save_failed:
            self.wait()
        return stop

    def wanted(self, step: int, benchmark: bool) -> None:
        """Note that this step is one to save at: benchmarks take long and may fail."""
        every = self._settings.every
        self._due = self._due or benchmark or (every > 0 and step % every == 0)

    def saves(self, *, skipped: bool, must: bool) -> bool:
        """Whether to save now; ``must``: training ends here.

        While steps are skipped, the weights are what may be wrong: the last checkpoint is the better one.
        """
        return must or ((self._due or not self._too_soon) and not skipped)

    def save(self, state: State, *, must: bool) -> None:
        """Save ``state``. Collective.

        Raises :class:`SaveError` if that fails and training ends here (``must``), or
        ``checkpoint.on_failure`` says to stop.
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

    def finish(self) -> None:
        """Let the save in flight end, good or bad."""
        self._saver.finish()

    def _warned(self, save: Callable[[], None]) -> None:
        try:
            save()
        except SaveError as error:
            if self._settings.on_failure == "stop":
                raise
            self._say(
                f"WARNING: no checkpoint was written ({error}). Training goes on, and the next one is tried "
                "when it is due; until then, what is trained is only in memory. Earlier checkpoints are whole"
            )
