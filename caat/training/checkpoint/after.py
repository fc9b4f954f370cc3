"""The user's command for each new checkpoint, run beside training."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path


class After:
    """Runs ``command`` for each new checkpoint, one after another.

    In its arguments, ``%p`` stands for the path of the checkpoint and ``%n`` for its name. There is no shell.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._runs: dict[Path, Future[str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint.after")

    def start(self, folder: Path) -> None:
        """Run the command for the checkpoint ``folder`` once those before it are done."""
        if self._command:
            words = [word.replace("%p", str(folder)).replace("%n", folder.name) for word in self._command]
            self._runs[folder] = self._thread.submit(_run, words)

    @property
    def unfinished(self) -> list[Path]:
        """The checkpoints whose command has not ended, oldest first. They must not be deleted."""
        return [folder for folder, run in list(self._runs.items()) if not run.done()]

    def problems(self) -> list[str]:
        """Return what went wrong since the last call, a line for each checkpoint."""
        ended = {folder: run for folder, run in list(self._runs.items()) if run.done()}
        for folder in ended:
            del self._runs[folder]
        return [
            f"checkpoint.after of {folder}: {run.result()}" for folder, run in ended.items() if run.result()
        ]

    def finish(self, say: Callable[[str], None]) -> None:
        """Wait for all commands, and ``say`` what went wrong."""
        for folder in self.unfinished:
            say(f"waiting for checkpoint.after of {folder.name}")
            self._runs[folder].result()
        for problem in self.problems():
            say(f"WARNING: {problem}")


def _run(words: Sequence[str]) -> str:
    """Run ``words``. Return what went wrong, in a line, or nothing."""
    try:
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal stops the run, not the command.
            start_new_session=True,
        )
    except OSError as error:
        return f"{words[0]} cannot be started ({error.strerror})"
    if ended.returncode == 0:
        return ""
    said = (ended.stderr or ended.stdout).strip().splitlines()
    return f"{shlex.join(words)} ended with status {ended.returncode}" + (f": {said[-1]}" if said else "")
