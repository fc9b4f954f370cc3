"""One run of a drill: started, watched, hit, and looked at afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 24
SETTINGS = [
    "model=tiny",
    "model.layers=2",
    "parallel.tensor=4",
    f"train.steps={STEPS}",
    "train.sequence=64",
    "train.global_batch=8",
    "train.eval_every=0",
    "train.eval_sequences=8",
    "train.log_every=1",
    "optim.warmup_steps=6",
    "data.vocab_size=400",
    "data.validation=0.1",
    "checkpoint.every=3",
    "launch.processes=2",
]
TIMEOUT = 300


class Run:
    """A run in ``folder``; :meth:`start` begins it, with a fault or without, any number of times."""

    def __init__(self, folder: Path, text: Path, *settings: str, prefix: Sequence[str] = ()) -> None:
        self.folder, self.prefix = folder, list(prefix)
        # Added to the environment.
        self.variables: dict[str, str] = {}
        data = [f"data.path={text}", f"data.dir={text.parent / 'data'}"]
        self.settings = [*SETTINGS, *data, f"run.dir={folder}", *settings]
        self.output = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self, *settings: str, fault: dict | None = None) -> subprocess.Popen[str]:
        """Begin, in a session of its own."""
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **self.variables}
        if fault:
            environment["CAAT_DRILL"] = json.dumps(fault)
        command = [*self.prefix, sys.executable, "-m", "tests.drills.start", *self.settings, *settings]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def end(self, process: subprocess.Popen[str]) -> int:
        """Wait for the end; returns the exit status, and keeps what was printed in :attr:`output`."""
        try:
            self.output = process.communicate(timeout=TIMEOUT)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.output = process.communicate()[0]
            raise AssertionError(f"{self.folder} did not end in {TIMEOUT} s:\n{self.output}") from None
        return process.returncode

    def run(self, *settings: str, fault: dict | None = None) -> int:
        return self.end(self.start(*settings, fault=fault))

    def resume(self, *settings: str) -> int:
        return self.run("resume=auto", *settings)

    def workers(self, process: subprocess.Popen[str]) -> list[int]:
        """Process ids of the ranks, in order."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = {}
        for child in map(int, children):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks = [value for value in variables if value.startswith(b"RANK=")]
            if ranks:
                found[int(ranks[0][5:])] = child
        return [found[rank] for rank in sorted(found)]

    def until(self, what: Callable[[], bool], process: subprocess.Popen[str], pause: float = 0.002) -> bool:
        """Wait until ``what()``; False if the run ended before."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if what():
                return True
            if process.poll() is not None:
                return False
            time.sleep(pause)
        raise AssertionError(f"{self.folder.name}: waited in vain")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def steps_done(self) -> int:
        """The last step in metrics.jsonl."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
            return json.loads(lines[-1])["step"] if lines else 0
        except (FileNotFoundError, ValueError):
            return 0

    def saved(self) -> int:
        """The step that `latest` names; 0 if there is none."""
        try:
            return int((self.checkpoints / "latest").read_text().strip().removeprefix("step-"))
        except FileNotFoundError:
            return 0

    def records(self) -> list[dict]:
        """The records of all steps so far. The last line may be half written."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def log(self) -> str:
        """What the run logged; empty if it ended before."""
        path = self.folder / "log.txt"
        return path.read_text() if path.is_file() else ""

    def present(self) -> list[int]:
        """The islands that were there at the last step; empty before the first."""
        return [record["islands_present"] for record in self.records()[-1:]]

    def round(self) -> int:
        """The rounds that made the anchor at the last step."""
        return next((record["islands_round"] for record in reversed(self.records())), 0)

    def failed(self) -> int:
        """The rounds that failed up to the last step."""
        return next((record["islands_rounds_failed"] for record in reversed(self.records())), 0)

    def losses(self) -> list[tuple[int, float]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [(record["step"], record["loss"]) for record in map(json.loads, lines)]

    def checksums(self, step: int = STEPS) -> dict[str, str]:
        """Of every file of a checkpoint, from its state.json."""
        return json.loads((self.checkpoints / f"step-{step:08}" / "state.json").read_text())["xxh3_128"]
