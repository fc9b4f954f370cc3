"""The watchdog's thread and the end of its process: neither may take the other down."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from caat.training.watchdog import _within

ROOT = Path(__file__).parents[2]
# Asking the store all the time, so that a thread that outlives the run is caught in the middle of it.
CODE = """
import torch
import torch.distributed as dist
from caat.training import watchdog
from caat.training.device import side_store, start_process_group, stop_process_group
watchdog.POLL_SECONDS = 1e-5
start_process_group(torch.device("cpu"))
watching = watchdog.Watchdog(side_store(), dist.get_rank(), dist.get_world_size(), 600)
watching.beat("ending")
stop_process_group()
watching.stop()
"""


def test_what_does_not_answer_is_left_behind():
    assert _within(30, lambda: "answer", None) == "answer"
    started = time.monotonic()
    assert _within(0.05, lambda: time.sleep(5), "no answer") == "no answer"
    assert time.monotonic() - started < 4


def test_processes_end_in_order(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{CODE}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, *launcher, str(script)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr


def test_it_is_heard_while_all_that_is_printed_is_silenced():
    code = """
import io, time
from contextlib import redirect_stderr
from caat.training.watchdog import Watchdog
Watchdog(None, 0, 1, 0.5).beat("evaluating")
with redirect_stderr(io.StringIO()):
    time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 5
    assert "no progress for 0.5 s; rank 0 hangs while evaluating" in ended.stderr


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_hang_ends_though_it_cannot_be_told():
    code = """
import time
from caat.training.watchdog import Watchdog
Watchdog(None, 0, 1, 0.5).beat("evaluating")
time.sleep(60)
"""
    with FULL.open("w") as full:
        ended = subprocess.run([sys.executable, "-c", code], stderr=full, timeout=60, cwd=ROOT)
    assert ended.returncode == 5


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_training_goes_on_though_nothing_can_be_printed(tmp_path):
    code = """
import sys
from pathlib import Path
from caat.training.progress import RunProgress
from caat.training.trackers.tracker import Guarded
progress = RunProgress(3, 0, Path("log.txt"))
progress.line(1, "loss 1")
progress.say("WARNING")
Guarded("a tracker", lambda: 1 / 0)
progress.close()
sys.stdout.write("done")
sys.stdout.flush()
sys.stderr = None
"""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    with FULL.open("w") as full:
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, timeout=60, cwd=tmp_path)
    assert ended.stdout == b"done"
    # The same where the reader has gone: a pipe that nobody reads.
    piped = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert piped.stdout is not None and piped.stderr is not None
    piped.stderr.close()
    assert piped.stdout.read() == b"done"
    piped.wait()
    assert (tmp_path / "log.txt").read_text().count("WARNING") == 2
