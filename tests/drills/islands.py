"""Drills of islands that come and go: each breaks one of two runs, or what is between them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.drills.outcome import Outcome, how_it_ended
from tests.drills.run import ROOT, Run

EVERY, TIMEOUT = 8, 12
# Rounds of both islands after the fault.
COMMON = 3
# A small model, and more steps than a drill lasts: both runs are stopped at its end.
SETTINGS = [
    "train.steps=100000",
    "model.hidden=64",
    "model.ffn=64",
    "model.vocab_size=400",
    "train.log_every=100",
    "checkpoint.every=2",
    "checkpoint.keep=0",
    "checkpoint.asynchronous=false",
    f"islands.every={EVERY}",
    f"islands.timeout={TIMEOUT}",
]
# Names of namespaces, and of their ends of the links to the machine, which has the lighthouse.
NAMESPACES, NETWORK = {"a": "caat-drill-a", "b": "caat-drill-b"}, "10.219.77"


class IslandDrill:
    """Runs the islands a and b in folders below ``base``; both end, whatever happens to one of them."""

    def __init__(self, base: Path, text: Path) -> None:
        self.base, self.text = base, text
        self._runs: list[Run] = []

    def killed_island(self) -> Outcome:
        """One process of b is killed between the quorum and the exchange; b is started again."""
        with self._lighthouse() as at:
            a, b = self._pair("killed", at)
            first = a.start()
            status = b.run(fault={"kind": "round", "rank": 1, "step": 3})
            ended, lost = how_it_ended(b.output, status), b.steps_done() - b.saved()
            problems = [] if status in (-9, 137) else [f"b ended with status {status}"]
            a.until(lambda: a.present() == [1], first)
            problems += self._met(a, first, b, b.start("resume=auto"))
        problems += _says(a, "b is gone", "b came") + _says(b, "took the anchor of round")
        return Outcome(ended, status, lost, problems + _same_anchors(a, b))

    def killed_lighthouse(self) -> Outcome:
        """The lighthouse is killed, and started again when both islands have noticed."""
        with self._lighthouse() as at:
            a, b, first, second = self._together("lighthouse", at)
            self._server.kill()
            self._server.wait()
            _both_noticed(a, first, b, second)
            self._serve(int(at.rpartition(":")[2]))
            problems = self._met(a, first, b, second)
        for run in (a, b):
            problems += _says(run, "does not answer")
        return Outcome("both trained on, rounds came back", 0, 0, problems + _same_anchors(a, b))

    def cut_link(self) -> Outcome:
        """The link of b is down for longer than a round waits."""
        with _namespaces() as cut, self._lighthouse(f"{NETWORK}.1") as at:
            a, b, first, second = self._together("link", at, within=NAMESPACES)
            cut(True)
            _both_noticed(a, first, b, second)
            cut(False)
            problems = self._met(a, first, b, second)
        problems += _says(a, "b came") + _says(b, "failed (")
        return Outcome("both trained on, rounds came back", 0, 0, problems + _same_anchors(a, b))

    def late_island(self) -> Outcome:
        """b is started when a has had rounds by itself; both have two bf16 replicas, ZeRO 3."""
        with self._lighthouse() as at:
            a, b = self._pair("late", at)
            for run in (a, b):
                run.settings += ["parallel.processes=1", "zero.stage=3", "train.precision=bf16"]
            first = a.start("islands.wait_for=1")
            a.until(lambda: a.round() >= 2, first)
            problems = self._met(a, first, b, b.start())
        problems += _says(a, "b came") + _says(b, "took the anchor of round")
        return Outcome("b took the anchor of a", 0, 0, problems + _same_anchors(a, b))

    def other_settings(self) -> Outcome:
        """b has another ZeRO stage."""
        with self._lighthouse() as at:
            a, b = self._pair("other", at)
            first = a.start("islands.wait_for=1")
            a.until(lambda: a.round() >= 1, first)
            status = b.run("zero.stage=3")
            ended, before = how_it_ended(b.output, status), a.round()
            problems = [] if status == 2 else [f"b ended with status {status}"]
            problems += _says(b, "zero.stage is 3 here and 1 on island a", "Give zero.stage=1")
            a.until(lambda: a.round() > before, first)
            problems += _stopped(a, first)
        problems += [] if a.failed() == 0 else [f"a was harmed: {a.output[-300:]}"]
        return Outcome(ended, status, 0, problems)

    def _together(self, name: str, at: str, within: dict[str, str] | None = None) -> tuple:
        """Start both, and wait for a round of both."""
        a, b = self._pair(name, at, within)
        first, second = a.start(), b.start()
        a.until(lambda: len(_common(a, b)) > 0, first)
        return a, b, first, second

    def _met(self, a: Run, first: subprocess.Popen[str], b: Run, second: subprocess.Popen[str]) -> list[str]:
        """Wait for new rounds of both islands, then stop both."""
        before, problems = max(_common(a, b), default=0), []
        for run, process in ((a, first), (b, second)):
            if not run.until(lambda: len(_common(a, b, before)) >= COMMON, process, 0.1):
                problems.append(f"{run.folder.name} ended")
        for run, process in ((b, second), (a, first)):
            problems += _stopped(run, process)
            longest = max((record["islands_wait_seconds"] for record in run.records()), default=0.0)
            # The lighthouse, the other islands, and an exchange.
            if longest > 2 * TIMEOUT + 10:
                problems.append(f"{run.folder.name} waited for {longest:.0f} s")
        return problems

    def _pair(self, name: str, at: str, within: dict[str, str] | None = None) -> tuple[Run, Run]:
        return self._run(name, "a", at, within), self._run(name, "b", at, within)

    def _run(self, name: str, island: str, at: str, within: dict[str, str] | None) -> Run:
        prefix = ["ip", "netns", "exec", within[island]] if within else []
        own = [f"islands.join={at}", f"islands.name={island}", "islands.wait_for=2"]
        run = Run(self.base / f"{name}-{island}", self.text, *SETTINGS, *own, prefix=prefix)
        run.variables = {"GLOO_SOCKET_IFNAME": f"drill-{island}" if within else "lo"}
        self._runs.append(run)
        return run

    @contextmanager
    def _lighthouse(self, host: str = "127.0.0.1") -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("0.0.0.0", 0))
            port = free.getsockname()[1]
        self._serve(port)
        try:
            yield f"{host}:{port}"
        finally:
            self._server.kill()
            self._server.wait()
            # After a drill that broke.
            for run in self._runs:
                if run.process is not None and run.process.poll() is None:
                    run.process.terminate()
                    run.end(run.process)

    def _serve(self, port: int) -> None:
        command = [sys.executable, "-m", "launch.islands", f"port={port}", "silence=3", "wait=3"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self._server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None and "islands.join" in self._server.stdout.readline()


def _says(run: Run, *texts: str) -> list[str]:
    said = run.output + run.log()
    return [f"{run.folder.name} does not say {text!r}" for text in texts if text not in said]


def _both_noticed(a: Run, first: subprocess.Popen[str], b: Run, second: subprocess.Popen[str]) -> None:
    """Wait until a round of each island has failed, or was without the other."""
    for run, process in ((a, first), (b, second)):
        assert run.until(lambda run=run: run.failed() > 0 or run.present() == [1], process)


def _stopped(run: Run, process: subprocess.Popen[str]) -> list[str]:
    """Stop a run as a user does; it saves."""
    process.send_signal(signal.SIGTERM)
    status = run.end(process)
    return [] if status == 75 else [f"{run.folder.name} ended with status {status}: {run.output[-500:]}"]


def _common(a: Run, b: Run, after: int = 0) -> set[int]:
    """The rounds after round ``after`` in which both were there."""
    both = [
        {record["islands_round"] for record in run.records() if record["islands_present"] == 2}
        for run in (a, b)
    ]
    return {number for number in both[0] & both[1] if number > after}


def _same_anchors(a: Run, b: Run) -> list[str]:
    """Checkpoints after the same round, with both islands there, hold the same model."""
    rounds, wrong, compared = _common(a, b), [], 0
    for number in sorted(rounds):
        models = [_model_after(run, number) for run in (a, b)]
        compared += all(models)
        if all(models) and models[0] != models[1]:
            wrong.append(number)
    problems = [f"the anchors of rounds {wrong} differ"] if wrong else []
    few = [] if compared >= COMMON else [f"compared {compared} of the rounds {sorted(rounds)}"]
    return problems + few


def _model_after(run: Run, number: int) -> str:
    """The checksum of the model in a checkpoint after this round; empty if there is none."""
    for record in run.records():
        step, there = record["step"], record["islands_round"] == number and record["islands_present"] == 2
        if there and (run.checkpoints / f"step-{step:08}" / "state.json").is_file():
            return run.checksums(step)["model.safetensors"]
    return ""


@contextmanager
def _namespaces() -> Iterator[Callable[[bool], None]]:
    """Connect both namespaces to a bridge; yields a function that cuts the link of b, or restores it."""

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)

    def remove() -> None:
        for name in NAMESPACES.values():
            ip("netns", "del", name, check=False)
        ip("link", "del", "drill-bridge", check=False)

    remove()
    try:
        ip("link", "add", "drill-bridge", "type", "bridge")
        ip("addr", "add", f"{NETWORK}.1/24", "dev", "drill-bridge")
        ip("link", "set", "drill-bridge", "up")
        for number, (island, name) in enumerate(NAMESPACES.items(), 2):
            ip("netns", "add", name)
            ip(
                "link",
                "add",
                f"out-{island}",
                "type",
                "veth",
                "peer",
                "name",
                f"drill-{island}",
                "netns",
                name,
            )
            ip("link", "set", f"out-{island}", "master", "drill-bridge", "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", f"drill-{island}")
            ip("-n", name, "link", "set", f"drill-{island}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield lambda down: ip("link", "set", "out-b", "down" if down else "up")
    finally:
        remove()


def island_drills(drill: IslandDrill) -> list[tuple[str, Callable[[], Outcome]]]:
    """Name and action of every drill of islands."""
    return [
        ("island killed in a round", drill.killed_island),
        ("lighthouse of islands killed, started again", drill.killed_lighthouse),
        ("cut link between islands", drill.cut_link),
        ("late island", drill.late_island),
        ("island with other settings", drill.other_settings),
    ]
