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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch.distributed as dist

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
    """:meth:`beat` says that this rank gets on; without a beat for ``seconds`` the run ends with status 5.

    ``store`` is shared by the ranks; ``None`` for a world of one.
    """

    def __init__(self, store: dist.Store | None, rank: int, world: int, seconds: float) -> None:
        self._store, self._rank, self._world, self._seconds = store, rank, world, seconds
        self._beats, self._doing, self._last = 0, "starting", time.monotonic()
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()
        self._put(f"process/{rank}", {"host": socket.gethostname(), "pid": os.getpid()})
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, doing: str) -> None:
        """Called by the main thread between any two things that may take long; costs nothing."""
        self._beats, self._doing, self._last = self._beats + 1, doing, time.monotonic()

    def stop(self) -> None:
        """Stop watching. Called by the main thread before the process ends."""
        self._stopped.set()
        # A thread that Python ends while it asks the store takes the whole process down with it.
        self._thread.join()

    def claim_failure(self, cause: str, wait: float = 0.0) -> bool:
        """Whether this rank is the first to fail; another one gets ``wait`` seconds to come before it."""
        self._stopped.set()
        if self._store is None:
            return True
        end = time.monotonic() + wait
        while time.monotonic() < end and not self._store.check([FAILED]):
            time.sleep(POLL_SECONDS / 5)
        ours = f"rank {self._rank}: {cause}"
        return self._store.compare_set(FAILED, "", ours).decode() == ours

    def _watch(self) -> None:
        # Without the store there is nobody to tell: the process that kept it is gone, and this run with it.
        with suppress(dist.DistError):
            while not self._stopped.wait(POLL_SECONDS):
                if self._store is not None and self._store.check([FAILED]):
                    time.sleep(LATER_SECONDS)
                    os._exit(1)
                if time.monotonic() - self._last > self._seconds:
                    self._report()

    def _report(self) -> None:
        """Tell where this rank is, hear where the others are, and end."""
        place = where(sys._current_frames().get(self._main or 0))
        reports = self._exchange({"beats": self._beats, "doing": self._doing, **place})
        text = diagnosis(reports, self._world, self._seconds)
        if self._rank == min(reports) and self.claim_failure(text):
            print(f"caat: error: {text}", file=sys.stderr, flush=True)
        time.sleep(LATER_SECONDS)
        for rank in set(range(self._world)) - set(reports):
            self._kill(rank)
        os._exit(HUNG_STATUS)

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
        assert self._store is not None
        process = json.loads(self._store.get(f"process/{rank}"))
        if process["host"] == socket.gethostname():
            os.kill(process["pid"], signal.SIGKILL)

    def _put(self, key: str, value: Mapping[str, object]) -> None:
        if self._store is not None:
            self._store.set(key, json.dumps(value))


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


def diagnosis(reports: Mapping[int, Mapping], world: int, seconds: float) -> str:
    """Who hangs, and what the others wait for, from what each rank told (nothing: it is frozen)."""
    silent = sorted(set(range(world)) - set(reports))
    fewest = min(report["beats"] for report in reports.values())
    behind = [rank for rank, report in reports.items() if report["beats"] == fewest]
    busy = [rank for rank in behind if not reports[rank]["collective"]]
    hanging = silent or (behind if len(behind) < len(reports) else busy)
    lines = [f"no progress for {seconds:g} s"]
    for rank in hanging:
        report = reports.get(rank)
        what = f"hangs while {report['doing']}, in {report['at']}" if report else "does not answer: frozen"
        lines.append(f"rank {rank} {what}")
    for rank in sorted(set(reports) - set(hanging)):
        report = reports[rank]
        waits = f"waits in {report['collective']}" if report["collective"] else "waits"
        lines.append(f"rank {rank} {waits} while {report['doing']}, in {report['at']}")
    if not hanging:
        lines.append("all ranks wait for each other: a message was lost, or the network is down")
    return "; ".join(lines)
