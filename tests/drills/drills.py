"""Every drill: a fault, how the run has to end, and what is left of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from caat.runs.status import read_why
from tests.drills.outcome import Outcome, how_it_ended
from tests.drills.run import STEPS, Run

HANGS = "rank 1 hangs while reading the data of step 8"


class Drill:
    """Breaks a run, then resumes it and compares with the uninterrupted ``reference``."""

    def __init__(self, base: Path, text: Path, reference: Run) -> None:
        self.base, self.text, self.reference = base, text, reference

    def new(self, name: str, *settings: str) -> Run:
        return Run(self.base / name, self.text, *settings)

    def outcome(self, run: Run, status: int, allowed: set[int], says: str = "") -> Outcome:
        """Resume the broken run to its end, and say what was lost."""
        problems = [] if status in allowed else [f"status {status}, not {sorted(allowed)}"]
        if says not in run.output:
            problems.append(f"it does not say {says!r}")
        if says not in read_why(run.folder):
            problems.append(f"its status is {read_why(run.folder)!r}, not {says!r}")
        ended = how_it_ended(run.output, status)
        done, saved = run.steps_done(), run.saved()
        if run.resume():
            problems.append(f"not resumed: {run.output[-500:]}")
        return Outcome(ended, status, max(0, done - saved), problems + self._compare(run))

    def _compare(self, run: Run) -> list[str]:
        """The same loss at every step and the same bytes on disk as without the fault."""
        if run.saved() != STEPS:
            return [f"the last checkpoint is of step {run.saved()}"]
        problems = []
        if run.losses() != self.reference.losses():
            problems.append("losses differ from the uninterrupted run")
        if run.checksums() != self.reference.checksums():
            problems.append("the last checkpoint differs from the uninterrupted run")
        if list(run.checkpoints.glob("*.tmp")):
            problems.append("half a checkpoint was left")
        return problems

    # Killed.

    def kill(self, number: int) -> Outcome:
        """kill -9 of one rank, or of all with their launcher; every other time inside a save."""
        chance = random.Random(number)
        run = self.new(f"kill{number}")
        process = run.start()
        inside, everyone = number % 2 == 0, number % 3 == 0
        threshold = chance.randrange(1, STEPS - 4)
        run.until(lambda: run.steps_done() >= threshold, process, 0.02)
        if inside:
            run.until(lambda: any(run.checkpoints.glob("step-*.tmp")), process, 0.0)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0, 0.5))
        if everyone:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(chance.choice(run.workers(process)), signal.SIGKILL)
        return self.outcome(run, run.end(process), {-9, 137})

    def kill_and_restart(self, number: int) -> Outcome:
        """kill -9 of one rank; the launcher starts all of them again by itself."""
        run = self.new(f"restart{number}", "launch.max_restarts=1")
        process = run.start()
        run.until(lambda: run.steps_done() >= 8 + number, process)
        os.kill(run.workers(process)[number % 2], signal.SIGKILL)
        status = run.end(process)
        ended = how_it_ended(run.output, status)
        problems = [] if status == 0 and "resumed from" in run.output else ["not restarted"]
        return Outcome(ended, status, 0, problems + self._compare(run))

    # Told to stop.

    def stop(self, number: signal.Signals, one_rank: bool) -> Outcome:
        # One that was told to stop is not one that died: it is not to be started again.
        run = self.new(f"{number.name}{one_rank}", *(["launch.max_restarts=1"] if one_rank else []))
        process = run.start()
        run.until(lambda: run.steps_done() >= 7, process)
        os.kill(run.workers(process)[1] if one_rank else process.pid, number)
        status = run.end(process)
        problems = []
        if f"to resume: caat pretrain {run.settings[0]}" not in run.output:
            problems.append("it does not say how to resume")
        if "elastic" in run.output:
            problems.append("torch speaks of what is none of the user's business")
        outcome = self.outcome(run, status, {75}, "which is saved")
        outcome.problems += problems
        return outcome

    # The disk.

    def full_disk(self, policy: str) -> Outcome:
        """A tmpfs with room for two checkpoints and a half; it grows before the run is resumed."""
        run = self.new(f"full-{policy}", f"checkpoint.on_failure={policy}")
        run.folder.mkdir()
        with _mounted(run.folder, "size=110m"):
            status = run.run()
            problems = self._still_good(run, "No space left on device")
            _mount("-o", "remount,size=1g", str(run.folder))
            outcome = self.outcome(run, status, {6})
        outcome.problems += problems
        return outcome

    def read_only(self) -> Outcome:
        """The folder of checkpoints cannot be written from step 6 on."""
        run = self.new("read-only", "checkpoint.on_failure=stop")
        run.checkpoints.mkdir(parents=True)
        (run.folder / "config.yaml").touch()
        with _mounted(run.checkpoints, "size=1g"):
            process = run.start("resume=auto")
            run.until(lambda: run.saved() >= 6, process)
            # A file system that is being written refuses at first.
            while _mount("-o", "remount,ro", str(run.checkpoints), check=False):
                time.sleep(0.01)
            status = run.end(process)
            problems = self._still_good(run, "Read-only file system")
            _mount("-o", "remount,rw", str(run.checkpoints))
            outcome = self.outcome(run, status, {6})
        outcome.problems += problems
        return outcome

    def damage(self, how: str, name: str, policy: str) -> Outcome:
        """A file of the latest checkpoint is damaged after the run was stopped."""
        run = self.new(f"{how}-{name}-{policy}")
        process = run.start()
        run.until(lambda: run.steps_done() >= 10, process)
        process.send_signal(signal.SIGTERM)
        status = run.end(process)
        stopped_at = run.steps_done()
        _damage(run.checkpoints / f"step-{run.saved():08}" / name, how)
        problems = []
        if policy == "stop":
            refused = run.resume("checkpoint.on_damage=stop")
            if refused != 2 or name not in run.output:
                problems.append(f"not refused: {refused} {run.output[-300:]}")
            # As the message says: a run is resumed with its own settings, and now one of them is to stop.
            run.settings.append("checkpoint.on_damage=previous")
        outcome = self.outcome(run, status, {75})
        if "WARNING" not in run.output or name not in run.output:
            problems.append("no loud warning")
        resumed_at = run.output.partition(" at step ")[2].partition(",")[0]
        outcome.ended = (
            f"{how} {name} found, {'refused, then ' if policy == 'stop' else ''}step {resumed_at} taken"
        )
        outcome.steps_lost = stopped_at - int(resumed_at or 0)
        outcome.problems += problems
        return outcome

    # Ranks that go wrong.

    def fault(self, kind: str, allowed: set[int], says: str) -> Outcome:
        """One rank raises, hangs, drifts or meets nan."""
        settings = ["train.check_replicas_every=4", "train.max_skipped=3", "launch.hang_seconds=8"]
        run = self.new(kind, *settings)
        status = run.run(fault={"kind": kind, "rank": 1, "step": 8})
        # Since the step before the fault.
        seconds = time.time() - (run.folder / "metrics.jsonl").stat().st_mtime
        if status == 0:
            # One step was skipped and the run went on: compare from the checkpoint before it.
            return self._from_before(run, status)
        outcome = self.outcome(run, status, allowed, says)
        if kind == "raise" and seconds > 30:
            outcome.problems.append(f"the others took {seconds:.0f} s to stop")
        return outcome

    def freeze(self) -> Outcome:
        """A rank is frozen: it cannot even say so."""
        run = self.new("freeze", "launch.hang_seconds=8")
        process = run.start()
        run.until(lambda: run.steps_done() >= 8, process)
        os.kill(run.workers(process)[1], signal.SIGSTOP)
        return self.outcome(run, run.end(process), {5, 137}, "rank 1 does not answer")

    def _from_before(self, run: Run, status: int) -> Outcome:
        problems = [] if "skipped steps    1" in run.output else ["the step was not skipped"]
        after = self.new(run.folder.name + "-again", f"resume={run.checkpoints / 'step-00000006'}")
        if after.run():
            problems.append("not resumed from before the fault")
        elif after.losses() != self.reference.losses()[6:]:
            problems.append("losses differ after resuming from before the fault")
        return Outcome("went on, one step skipped by all ranks", status, 1, problems)

    def _still_good(self, run: Run, says: str) -> list[str]:
        problems = [] if says in run.output else [f"it does not say {says!r}"]
        if list(run.checkpoints.glob("*.tmp")) and "Read-only" not in says:
            problems.append("half a checkpoint was left")
        return problems if run.saved() else [*problems, "no checkpoint is left"]


def all_drills(drill: Drill, kills: int) -> list[tuple[str, Callable[[], Outcome]]]:
    """Name and action of every drill."""
    term, usr1, second = signal.SIGTERM, signal.SIGUSR1, "optimizer.exp_avg_sq.safetensors"
    found: list[tuple[str, Callable[[], Outcome]]] = []
    for i in range(kills):
        who, when = "all" if i % 3 == 0 else "one rank", " inside a save" if i % 2 == 0 else ""
        found.append((f"kill -9 of {who}{when} ({i + 1})", partial(drill.kill, i)))
    for i in range(2):
        found.append((f"kill -9, restarted by the launcher ({i + 1})", partial(drill.kill_and_restart, i)))
    found += [
        ("SIGTERM to the launcher", lambda: drill.stop(term, False)),
        ("SIGTERM to one rank", lambda: drill.stop(term, True)),
        ("Ctrl-C", lambda: drill.stop(signal.SIGINT, False)),
        ("SIGUSR1 to the launcher", lambda: drill.stop(usr1, False)),
        ("SIGUSR1 to one rank", lambda: drill.stop(usr1, True)),
        ("full disk, warn", lambda: drill.full_disk("warn")),
        ("full disk, stop", lambda: drill.full_disk("stop")),
        ("read-only folder", drill.read_only),
        ("truncated weights", lambda: drill.damage("truncated", "model.safetensors", "previous")),
        (
            "bit flip in a moment",
            lambda: drill.damage("flipped", second, "previous"),
        ),
        ("bit flip, told to stop", lambda: drill.damage("flipped", "model.safetensors", "stop")),
        ("missing moments", lambda: drill.damage("missing", "optimizer.exp_avg.safetensors", "previous")),
        ("bit flip in config.json", lambda: drill.damage("flipped", "config.json", "previous")),
        ("truncated state.json", lambda: drill.damage("truncated", "state.json", "previous")),
        ("a rank hangs", lambda: drill.fault("hang", {5}, HANGS)),
        ("a rank is frozen", drill.freeze),
        ("a rank raises", lambda: drill.fault("raise", {1}, "rank 1: the drill's own failure")),
        ("nan in a gradient", lambda: drill.fault("gradient", {0}, "")),
        ("nan in a weight", lambda: drill.fault("weight", {3}, "3 steps in a row")),
        ("nan in a batch", lambda: drill.fault("batch", {0}, "")),
        (
            "a norm weight drifts",
            lambda: drill.fault("drift", {4}, "blocks.0.mlp_norm.weight"),
        ),
    ]
    return found


def _damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) * 2 // 3] ^= 16
    path.write_bytes(data if how == "flipped" else data[: len(data) // 2])


class _mounted:
    """A tmpfs at a folder for a while. Root may write anywhere, so permissions would not do."""

    def __init__(self, folder: Path, options: str) -> None:
        self._folder, self._options = folder, options

    def __enter__(self) -> None:
        _mount("-t", "tmpfs", "-o", self._options, "tmpfs", str(self._folder))

    def __exit__(self, *_: object) -> None:
        # What was written is kept for whoever wants to look at a drill that failed.
        kept = self._folder.with_name(self._folder.name + ".kept")
        shutil.copytree(self._folder, kept)
        subprocess.run(["umount", str(self._folder)], check=True)
        shutil.rmtree(kept)


def _mount(*arguments: str, check: bool = True) -> int:
    return subprocess.run(["mount", *arguments], check=check, capture_output=True).returncode
