"""A thread on every rank that ends the run if it hangs or another rank fails, and reports which and where."""

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
from caat.supervision.exit_status import HUNG
from caat.supervision.flight_recorder import absent, entered, waits_in

T = TypeVar("T")
D = TypeVar("D")

ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / package) for package in ("caat", "layers", "launch", "eval"))
POLL_SECONDS = 0.5
# Time for other ranks to report where they are, before they count as frozen.
REPORT_SECONDS = 5.0
# Delay before the other ranks exit, so that the launcher sees the failed rank exit first.
LATER_SECONDS = 2.0
FAILED = "failed"


class Watchdog:
    """Ends the run with status 5 if no rank makes progress for ``seconds``.

    The main thread reports progress by :meth:`beat` and :meth:`tick`. A rank that waits for another one that
    is still making progress does not hang. ``store`` is shared by the ranks, ``None`` if the world size is
    1. It runs on the first rank's host: if the network is down, calls to it do not return, so no call may
    keep this rank from exiting.
    """

    def __init__(self, store: dist.Store | None, rank: int, world: int, seconds: float) -> None:
        self._store, self._rank, self._world, self._seconds = store, rank, world, seconds
        # All ranks count the same beats, so these show which rank is behind. Ticks only show progress.
        self._beats, self._ticks, self._doing = 0, 0, "starting"
        # Changes whenever any rank has made progress.
        self._anywhere = 0
        self._resting = False
        # Called with the reason for which the run ended, on the rank that reports it.
        self.record: Callable[[str], None] = lambda why: None
        self._main = threading.main_thread().ident
        # Kept because benchmarks redirect sys.stderr of the whole process.
        self._stderr = sys.stderr
        self._stopped = threading.Event()
        self._put(f"process/{rank}", {"host": socket.gethostname(), "pid": os.getpid()})
        # Host and pid by rank, once they are known.
        self._processes: dict[int, dict] = {}
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if store is not None:
            self._threads.append(threading.Thread(target=self._listen, name="watchdog listener", daemon=True))
        for thread in self._threads:
            thread.start()

    def beat(self, doing: str) -> None:
        """Declare what the main thread does next. All ranks make the same calls in the same order. Cheap."""
        self._beats, self._doing = self._beats + 1, doing
        self.tick()

    def tick(self, *_: object) -> None:
        """Report progress, from any thread. Accepts any arguments, so that it can serve as a hook."""
        self._ticks += 1

    def rest(self) -> None:
        """Stop the hang timer after training; failures of other ranks still end this process."""
        self._doing, self._resting = "closing the run", True

    def stop(self) -> None:
        """Stop watching. The main thread calls this before the process exits."""
        self._stopped.set()
        # If the interpreter exits while a thread is inside a store call, the whole process crashes.
        for thread in self._threads:
            thread.join()

    def claim_failure(self, cause: str, wait: float = 0.0) -> bool:
        """Return whether this rank is the first to fail, after giving others ``wait`` seconds to claim it.

        Returns True if the store cannot be reached.
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
            # Counted in polls: a clock would keep running while the whole job is suspended.
            still = 0.0 if now != seen or self._resting else still + POLL_SECONDS
            seen = now
            if still > self._seconds:
                try:
                    self._report()
                finally:
                    os._exit(HUNG)

    def _listen(self) -> None:
        """Exchange progress with the other ranks, and end this process when one of them has failed."""
        assert self._store is not None
        told = 0
        # If the store is gone, so is the process that hosted it: this run is ending anyway.
        with suppress(dist.DistError):
            keys = [f"process/{rank}" for rank in range(self._world)]
            while not self._stopped.wait(POLL_SECONDS):
                if self._store.check([FAILED]):
                    time.sleep(LATER_SECONDS)
                    os._exit(1)
                ticks = self._ticks
                self._anywhere = self._store.add("progress", int(ticks != told))
                told = ticks
                # Read this early: once the network is down, it cannot be read any more.
                if not self._processes and self._store.check(keys):
                    self._processes = {
                        rank: json.loads(self._store.get(key)) for rank, key in enumerate(keys)
                    }

    def _report(self) -> None:
        """Exchange reports of where each rank is, print the diagnosis, and kill frozen ranks."""
        # Stop the listener: it would end this process with status 1 once another rank claims the failure.
        self._stopped.set()
        place = where(sys._current_frames().get(self._main or 0))
        own = {"beats": self._beats, "doing": self._doing, **place}
        own["entered"] = _within(REPORT_SECONDS, entered, {})
        heard = _within(2 * REPORT_SECONDS, lambda: self._exchange(own), None)
        reports = heard or {self._rank: own}
        hosts = {rank: process["host"] for rank, process in self._processes.items()}
        text = diagnosis(reports, self._world, self._seconds, hosts)
        first = self._rank == min(reports) and self.claim_failure(text)
        if first:
            # This process must exit even if stderr is closed.
            with suppress(OSError):
                print(f"caat: error: {text}", file=self._stderr, flush=True)
            _within(REPORT_SECONDS, lambda: self.record(text), None)
        # The first exit makes the collectives of the other ranks fail, with another status: exit in order.
        time.sleep(LATER_SECONDS if first else 2 * LATER_SECONDS)
        for rank in set(range(self._world)) - set(reports):
            self._kill(rank)
        elsewhere = hosts.get(0, socket.gethostname()) != socket.gethostname()
        if heard is None and elsewhere and launched_by_torchrun():
            # torchrun also contacts the first host, and would wait a quarter of an hour for an answer.
            os.kill(os.getppid(), signal.SIGKILL)

    def _exchange(self, own: dict) -> dict[int, dict]:
        """Return the reports by rank of the ranks that answer in time."""
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
        """Kill a frozen process on this host, which would keep its launcher waiting."""
        process = self._processes.get(rank)
        if process is not None and process["host"] == socket.gethostname():
            with suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)

    def _put(self, key: str, value: Mapping[str, object]) -> None:
        if self._store is not None:
            self._store.set(key, json.dumps(value))


def tick_in(model: nn.Module, tick: Callable[..., None]) -> None:
    """Call ``tick`` as ``model`` computes: before each of its ``blocks`` and at the gradient of each weight.

    This allows a single forward and backward pass to take longer than the time that counts as a hang.
    """
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(tick)
    for parameter in model.parameters():
        parameter.register_hook(tick)


def _within(seconds: float, work: Callable[[], T], otherwise: D) -> T | D:
    """Return the result of ``work()``, or ``otherwise`` if it fails or takes longer than ``seconds``.

    A call that takes longer is abandoned in its thread.
    """
    results: list[T] = []

    def run() -> None:
        with suppress(dist.DistError, OSError):
            results.append(work())

    thread = threading.Thread(target=run, name="watchdog call", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else otherwise


def where(frame: FrameType | None) -> dict[str, str]:
    """Return our innermost function on the stack of ``frame``, and the collective it waits in, if any."""
    at, collective = "unknown", ""
    for entry in traceback.extract_stack(frame) if frame else []:
        if entry.filename.startswith(OURS):
            at = f"{os.path.relpath(entry.filename, ROOT)}:{entry.lineno} ({entry.name})"
            collective = ""
        elif "torch/distributed" in entry.filename and not entry.name.startswith("_"):
            collective = entry.name
    return {"at": at, "collective": "" if collective == "wrapper" else collective}


def diagnosis(reports: Mapping[int, Mapping], world: int, seconds: float, hosts: Mapping[int, str]) -> str:
    """Describe which ranks hang and what the others wait for, from the reports by rank.

    A rank without a report is frozen or, if ``hosts`` (by rank) names several hosts, may be unreachable. With
    NCCL, the flight recorder knows who has not entered a collective; the stacks do not.
    """
    several = len(set(hosts.values())) > 1
    names = [f"rank {rank} on {hosts[rank]}" if several else f"rank {rank}" for rank in range(world)]
    no_answer = "does not answer: frozen" + (", or the network to it is down" if several else "")
    silent = sorted(set(range(world)) - set(reports))
    fewest = min(report["beats"] for report in reports.values())
    behind = [rank for rank, report in reports.items() if report["beats"] == fewest]
    records = {rank: report.get("entered", {}) for rank, report in reports.items()}
    waits = {rank: report["collective"] or waits_in(records[rank]) for rank, report in reports.items()}
    missed = absent(records)
    busy = sorted(missed) or [rank for rank in behind if not waits[rank]]
    hanging = silent or (behind if len(behind) < len(reports) else busy)
    lines = [f"no progress for {seconds:g} s"]
    for rank in hanging:
        report = reports.get(rank)
        what = f"hangs while {report['doing']}, in {report['at']}" if report else no_answer
        never = f" (it did not enter {missed[rank]})" if rank in missed else ""
        lines.append(f"{names[rank]} {what}{never}")
    for rank in sorted(set(reports) - set(hanging)):
        report = reports[rank]
        waiting = f"waits in {waits[rank]}" if waits[rank] else "waits"
        lines.append(f"{names[rank]} {waiting} while {report['doing']}, in {report['at']}")
    if not hanging:
        lines.append("all ranks wait for each other: a message was lost, or the network is down")
    return "; ".join(lines)
