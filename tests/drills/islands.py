"""Drills of islands that come and go: each breaks one of two runs, or what is between them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.drills.outcome import Outcome, how_it_ended
from tests.drills.run import ROOT, Run

STEPS, EVERY, TIMEOUT = 32, 4, 12
# Names of namespaces, and of their ends of the links to the machine, which has the lighthouse.
NAMESPACES, NETWORK = {"a": "caat-drill-a", "b": "caat-drill-b"}, "10.219.77"


class IslandDrill:
    """Runs the islands a and b in folders below ``base``; both end, whatever happens to one of them."""

    def __init__(self, base: Path, text: Path) -> None:
        self.base, self.text = base, text

    def killed_island(self) -> Outcome:
        """One process of b is killed between the quorum and the exchange; b is started again."""
        with self._lighthouse() as at:
            a, b = self._pair("killed", at)
            running = a.start()
            status = b.run(fault={"kind": "round", "rank": 1, "step": 3})
            ended, lost = how_it_ended(b.output, status), b.steps_done() - b.saved()
            problems = [] if status in (-9, 137) else [f"b ended with status {status}"]
            a.until(lambda: a.present() == [1], running)
            problems += self._both_ended(a, running, b, b.start("resume=auto"))
        problems += _says(a, "b is gone", "b came") + _says(b, "took the anchor of round")
        return Outcome(ended, status, lost, problems + _same_anchors(a, b))

    def killed_lighthouse(self) -> Outcome:
        """The lighthouse is killed, and started again when both islands have noticed."""
        with self._lighthouse() as at:
            port = int(at.rpartition(":")[2])
            a, b = self._pair("lighthouse", at)
            first, second = a.start(), b.start()
            a.until(lambda: a.present() == [2] and a.steps_done() >= EVERY + 1, first)
            self._server.kill()
            self._server.wait()
            for run, process in ((a, first), (b, second)):
                run.until(lambda run=run: run.failed() > 0, process)
            before = a.round()
            self._serve(port)
            problems = self._both_ended(a, first, b, second)
        problems += [] if a.round() > before + 1 else [f"no round after round {before}"]
        for run in (a, b):
            problems += _says(run, "does not answer")
        return Outcome("both went on, rounds came back", 0, 0, problems + _same_anchors(a, b))

    def cut_link(self) -> Outcome:
        """The link of b is down for longer than a round waits."""
        with _namespaces() as cut, self._lighthouse(f"{NETWORK}.1") as at:
            a, b = self._pair("link", at, within=NAMESPACES)
            first, second = a.start(), b.start()
            a.until(lambda: a.present() == [2] and a.steps_done() >= EVERY + 1, first)
            cut(True)
            for run, process in ((a, first), (b, second)):
                run.until(lambda run=run: run.failed() > 0 or run.present() == [1], process)
            cut(False)
            problems = self._both_ended(a, first, b, second)
        problems += _says(a, "b is gone", "b came") + _says(b, "failed (")
        return Outcome("both went on, rounds came back", 0, 0, problems + _same_anchors(a, b))

    def late_island(self) -> Outcome:
        """b is started when a has had rounds by itself."""
        with self._lighthouse() as at:
            a, b = self._pair("late", at, "islands.wait_for=1")
            first = a.start()
            a.until(lambda: a.round() >= 2, first)
            problems = self._both_ended(a, first, b, b.start())
        problems += _says(a, "b came") + _says(b, "took the anchor of round")
        return Outcome("b took the anchor of a", 0, 0, problems + _same_anchors(a, b))

    def other_settings(self) -> Outcome:
        """b has another ZeRO stage."""
        with self._lighthouse() as at:
            a, b = self._pair("other", at, "islands.wait_for=1")
            first = a.start()
            a.until(lambda: a.round() >= 1, first)
            status = b.run("zero.stage=3")
            ended = how_it_ended(b.output, status)
            problems = [] if status == 2 else [f"b ended with status {status}"]
            problems += _says(b, "zero.stage is 3 here and 1 on island a", "Give zero.stage=1")
            status_of_a = a.end(first)
        problems += [] if status_of_a == 0 and a.failed() == 0 else [f"a was harmed: {a.output[-300:]}"]
        return Outcome(ended, status, 0, problems)

    def _pair(self, name: str, at: str, *settings: str, within: dict[str, str] | None = None) -> list[Run]:
        common = [
            f"train.steps={STEPS}",
            "checkpoint.every=1",
            "checkpoint.keep=0",
            "checkpoint.asynchronous=false",
            f"islands.join={at}",
            f"islands.every={EVERY}",
            f"islands.timeout={TIMEOUT}",
            *(settings or ["islands.wait_for=2"]),
        ]
        found = []
        for island in ("a", "b"):
            prefix = ["ip", "netns", "exec", within[island]] if within else []
            run = Run(self.base / f"{name}-{island}", self.text, *common, prefix=prefix)
            run.settings.append(f"islands.name={island}")
            run.variables = {"GLOO_SOCKET_IFNAME": f"drill-{island}" if within else "lo"}
            found.append(run)
        return found

    def _both_ended(
        self, a: Run, first: subprocess.Popen[str], b: Run, second: subprocess.Popen[str]
    ) -> list[str]:
        """Wait for both. A wait for others never took longer than the timeout and the checks around it."""
        problems = []
        for run, process in ((a, first), (b, second)):
            status, steps = run.end(process), run.steps_done()
            if status or steps != STEPS:
                problems.append(f"{run.folder.name}: status {status}, step {steps}: {run.output[-500:]}")
            longest = max((record.get("islands_wait_seconds", 0.0) for record in run.records()), default=0.0)
            if longest > 2 * TIMEOUT + 10:
                problems.append(f"{run.folder.name} waited for {longest:.0f} s")
        return problems

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


def _same_anchors(a: Run, b: Run) -> list[str]:
    """Checkpoints after the same round, with both islands there, hold the same model."""
    found: dict[int, dict[str, set[str]]] = {}
    for run in (a, b):
        for record in run.records():
            if record["islands_present"] == 2 and (run.checkpoints / f"step-{record['step']:08}").is_dir():
                checksum = run.checksums(record["step"])["model.safetensors"]
                found.setdefault(record["islands_round"], {}).setdefault(run.folder.name, set()).add(checksum)
    common = {number: sums for number, sums in found.items() if len(sums) == 2}
    wrong = [number for number, sums in common.items() if len(set.union(*sums.values())) > 1]
    problems = [f"the anchors of rounds {wrong} differ"] if wrong else []
    return problems if len(common) > 1 else [*problems, f"only rounds {sorted(common)} were in common"]


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
