"""The user's command for each new checkpoint, run beside training."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from caat.storage.durable import write_bytes

# Names the checkpoints whose command has not ended well, a line each, for the next start of the run.
PENDING = "after.txt"


class After:
    """Runs ``command`` for each new checkpoint in the folder ``checkpoints``, one after another.

    In its arguments, ``%p`` stands for the path of the checkpoint and ``%n`` for its name. There is no shell.
    """

    def __init__(self, command: Sequence[str], checkpoints: Path) -> None:
        self._command, self._record = command, checkpoints / PENDING
        self._lock = Lock()
        self._runs: dict[Path, Future[str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint.after")

    def start(self, folder: Path) -> None:
        """Run the command for the checkpoint ``folder`` once those before it are done."""
        if self._command:
            words = [word.replace("%p", str(folder)).replace("%n", folder.name) for word in self._command]
            self._note(folder.name, pending=True)
            self._runs[folder] = self._thread.submit(self._hand_over, words, folder.name)

    def start_again(self) -> list[str]:
        """Run the command for the checkpoints for which it did not end well before; return their names."""
        names = self._pending() if self._command else []
        for name in names:
            folder = self._record.with_name(name)
            if folder.is_dir():
                self.start(folder)
            else:
                self._note(name, pending=False)
        return [folder.name for folder in self._runs]

    def _pending(self) -> list[str]:
        return self._record.read_text(encoding="utf-8").split() if self._record.is_file() else []

    def _note(self, name: str, *, pending: bool) -> None:
        aside = self._record.with_suffix(".tmp")
        # A full disk must not turn a checkpoint that is saved into one that failed.
        with self._lock, suppress(OSError):
            names = [other for other in self._pending() if other != name] + [name] * pending
            write_bytes(aside, "".join(f"{each}\n" for each in names).encode())
            aside.replace(self._record)

    def _hand_over(self, words: Sequence[str], name: str) -> str:
        problem = _run(words)
        if not problem:
            self._note(name, pending=False)
        return problem

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
