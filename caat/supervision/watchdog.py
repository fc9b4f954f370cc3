"""A thread on every rank that ends a run which hangs or has failed elsewhere, and says who and where."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch.distributed as dist
from torch import nn

from caat.parallel.world import launched_by_torchrun

T = TypeVar("T")
D = TypeVar("D")

ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / package) for package in ("caat", "layers", "launch", "eval"))
POLL_SECONDS = 0.5
# What other ranks get to report where they are before they count as frozen.
REPORT_SECONDS = 5.0
# The failed rank is to be the first that its launcher sees ending.
LATER_SECONDS = 2.0
FAILED = "failed"
HUNG_STATUS = 5


class Watchdog:
    """:meth:`beat` and :meth:`tick` say that this rank gets on.

    If no rank does for ``seconds``, the run ends with status 5: one that waits for a rank that works is no
    hang. ``store`` is shared by the ranks; ``None`` for a world of one. It is on the first rank's host: where
    the network is down, a call of it does not return, and none may keep this rank from ending.
    """

    def __init__(self, store: dist.Store | None, rank: int, world: int, seconds: float) -> None:
        self._store, self._rank, self._world, self._seconds = store, rank, world, seconds
        # Beats, which are the same on all ranks, tell who is behind; ticks only that a rank gets on.
        self._beats, self._ticks, self._doing = 0, 0, "starting"
        # Changes whenever some rank has got on.
        self._anywhere = 0
        self._resting = False
        # Told why the run ended, by the rank that says so.
        self.record: Callable[[str], None] = lambda why: None
        self._main = threading.main_thread().ident
        # Benchmarks silence what the whole process prints.
        self._stderr = sys.stderr
        self._stopped = threading.Event()
        self._put(f"process/{rank}", {"host": socket.gethostname(), "pid": os.getpid()})
        # By rank, as far as they are known.
        self._processes: dict[int, dict] = {}
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if store is not None:
            self._threads.append(threading.Thread(target=self._listen, name="watchdog's ear", daemon=True))
        for thread in self._threads:
            thread.start()

    def beat(self, doing: str) -> None:
        """What the main thread does from now on; all ranks say the same in the same order. Costs nothing."""
        self._beats, self._doing = self._beats + 1, doing
        self.tick()

    def tick(self, *_: object) -> None:
        """What is being done gets on, whichever thread does it. Takes anything, to be used as a hook."""
        self._ticks += 1

    def rest(self) -> None:
        """Training is over: what is left to do may take any time, but failures elsewhere are still heard."""
        self._doing, self._resting = "closing the run", True

    def stop(self) -> None:
        """Stop watching. Called by the main thread before the process ends."""
        self._stopped.set()
        # A thread that Python ends while it asks the store takes the whole process down with it.
        for thread in self._threads:
            thread.join()

    def claim_failure(self, cause: str, wait: float = 0.0) -> bool:
        """Whether this rank is the first to fail; another one gets ``wait`` seconds to come before it.

        Where the store cannot be reached, nobody else can be heard.
        """
        self._stopped.set()
        store, ours = self._store, f"rank {self._rank}: {cause}"
        if store is None:
            return True

        def claim() -> bool:
            end = time.monotonic() + wait
            while time.monotonic() < end and not store.check([FAILED]):
                time.sleep(POLL_SECONDS / 5)
            return store.compare_set(FAILED, "", ours).decode() == ours

        return _within(wait + REPORT_SECONDS, claim, True)

    def _watch(self) -> None:
        seen, still = (-1, -1), 0.0
        while not self._stopped.wait(POLL_SECONDS):
            now = (self._ticks, self._anywhere)
            # Counted, not read from a clock: that one goes on while the whole job is suspended.
            still = 0.0 if now != seen or self._resting else still + POLL_SECONDS
            seen = now
            if still > self._seconds:
                try:
                    self._report()
                finally:
                    os._exit(HUNG_STATUS)

    def _listen(self) -> None:
        """End this process when another rank has failed; tell the others, and hear, who gets on."""
        assert self._store is not None
        told = 0
        # Without the store there is nobody to hear: the process that kept it is gone, and this run with it.
        with suppress(dist.DistError):
            keys = [f"process/{rank}" for rank in range(self._world)]
            while not self._stopped.wait(POLL_SECONDS):
                if self._store.check([FAILED]):
                    time.sleep(LATER_SECONDS)
                    os._exit(1)
                ticks = self._ticks
                self._anywhere = self._store.add("progress", int(ticks != told))
                told = ticks
                # Learnt while all is well: with the network gone it would be too late.
                if not self._processes and self._store.check(keys):
                    self._processes = {
                        rank: json.loads(self._store.get(key)) for rank, key in enumerate(keys)
                    }

    def _report(self) -> None:
        """Tell where this rank is, hear where the others are, and end those that are frozen."""
        # The ear would end this process with the status of a rank that another one's failure ends.
        self._stopped.set()
        place = where(sys._current_frames().get(self._main or 0))
        own = {"beats": self._beats, "doing": self._doing, **place}
        heard = _within(2 * REPORT_SECONDS, lambda: self._exchange(own), None)
        reports = heard or {self._rank: own}
        hosts = {rank: process["host"] for rank, process in self._processes.items()}
        text = diagnosis(reports, self._world, self._seconds, hosts)
        first = self._rank == min(reports) and self.claim_failure(text)
        if first:
            # With nobody to read it, this process is to end all the same.
            with suppress(OSError):
                print(f"caat: error: {text}", file=self._stderr, flush=True)
            _within(REPORT_SECONDS, lambda: self.record(text), None)
        # Once one rank is gone, the collectives that others wait in fail, and they with another status.
        time.sleep(LATER_SECONDS if first else 2 * LATER_SECONDS)
        for rank in set(range(self._world)) - set(reports):
            self._kill(rank)
        elsewhere = hosts.get(0, socket.gethostname()) != socket.gethostname()
        if heard is None and elsewhere and launched_by_torchrun():
            # torchrun asks the first host as well, and waits a quarter of an hour for the answer.
            os.kill(os.getppid(), signal.SIGKILL)

    def _exchange(self, own: dict) -> dict[int, dict]:
        """Reports by rank, of those that give one in time."""
        if self._store is None:
            return {self._rank: own}
        self._put(f"stall/{self._rank}", own)
        keys = {rank: f"stall/{rank}" for rank in range(self._world)}
        end = time.monotonic() + REPORT_SECONDS
        while time.monotonic() < end and not self._store.check(list(keys.values())):
            time.sleep(POLL_SECONDS)
        return {
            rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])
        }

    def _kill(self, rank: int) -> None:
        """A frozen process of this host: it would keep its launcher waiting."""
        process = self._processes.get(rank)
        if process is not None and process["host"] == socket.gethostname():
            with suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)

    def _put(self, key: str, value: Mapping[str, object]) -> None:
        if self._store is not None:
            self._store.set(key, json.dumps(value))


def tick_in(model: nn.Module, tick: Callable[..., None]) -> None:
    """Call ``tick`` as ``model`` computes: before each of its ``blocks``, and at the gradient of each weight.

    So a single forward and backward pass may take longer than what counts as a hang.
    """
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(tick)
    for parameter in model.parameters():
        parameter.register_hook(tick)


def _within(seconds: float, work: Callable[[], T], otherwise: D) -> T | D:
    """What ``work()`` returns, or ``otherwise`` if it fails or takes longer; then it is left behind."""
    results: list[T] = []

    def run() -> None:
        with suppress(dist.DistError, OSError):
            results.append(work())

    thread = threading.Thread(target=run, name="watchdog's voice", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else otherwise


def where(frame: FrameType | None) -> dict[str, str]:
    """Our innermost function on the stack of ``frame``, and the collective that it waits in, if any."""
    at, collective = "unknown", ""
    for entry in traceback.extract_stack(frame) if frame else []:
        if entry.filename.startswith(OURS):
            at = f"{os.path.relpath(entry.filename, ROOT)}:{entry.lineno} ({entry.name})"
            collective = ""
        elif "torch/distributed" in entry.filename and not entry.name.startswith("_"):
            collective = entry.name
    return {"at": at, "collective": "" if collective == "wrapper" else collective}


def diagnosis(reports: Mapping[int, Mapping], world: int, seconds: float, hosts: Mapping[int, str]) -> str:
    """Who hangs, and what the others wait for, from what each rank told.

    One that told nothing is frozen or, if there are several ``hosts`` (by rank), may be cut off.
    """
    several = len(set(hosts.values())) > 1
    names = [f"rank {rank} on {hosts[rank]}" if several else f"rank {rank}" for rank in range(world)]
    no_answer = "does not answer: frozen" + (", or the network to it is down" if several else "")
    silent = sorted(set(range(world)) - set(reports))
    fewest = min(report["beats"] for report in reports.values())
    behind = [rank for rank, report in reports.items() if report["beats"] == fewest]
    busy = [rank for rank in behind if not reports[rank]["collective"]]
    hanging = silent or (behind if len(behind) < len(reports) else busy)
    lines = [f"no progress for {seconds:g} s"]
    for rank in hanging:
        report = reports.get(rank)
        what = f"hangs while {report['doing']}, in {report['at']}" if report else no_answer
        lines.append(f"{names[rank]} {what}")
    for rank in sorted(set(reports) - set(hanging)):
        report = reports[rank]
        waits = f"waits in {report['collective']}" if report["collective"] else "waits"
        lines.append(f"{names[rank]} {waits} while {report['doing']}, in {report['at']}")
    if not hanging:
        lines.append("all ranks wait for each other: a message was lost, or the network is down")
    return "; ".join(lines)
