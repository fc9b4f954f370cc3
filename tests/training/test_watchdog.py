"""The watchdog's thread and the end of its process: neither may take the other down."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

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
