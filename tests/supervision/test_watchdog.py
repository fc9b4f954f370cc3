"""The watchdog's thread and the end of its process: neither may take the other down."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caat.parallel.mesh import Mesh
from caat.supervision.watchdog import _within, tick_in
from tests.models import batch, build

ROOT = Path(__file__).parents[2]
# Asking the store all the time, so that a thread that outlives the run is caught in the middle of it.
CODE = """
import torch
import torch.distributed as dist
from caat.supervision import watchdog
from caat.supervision.device import side_store, start_process_group, stop_process_group
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


def run_ranks(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in two processes."""
    script = folder / "job.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_processes_end_in_order(tmp_path):
    for _ in range(2):
        result = run_ranks(tmp_path, CODE)
        assert result.returncode == 0, result.stderr


def test_it_is_heard_while_all_that_is_printed_is_silenced():
    code = """
import io, time
from contextlib import redirect_stderr
from caat.supervision.watchdog import Watchdog
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
from caat.supervision.watchdog import Watchdog
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


def test_a_rank_that_waits_for_one_that_works_does_not_hang(tmp_path):
    """The second rank gets on, four times as long as counts as a hang, while the first waits for it."""
    code = (
        CODE.replace("1e-5", "0.1")
        .replace(", 600)", ", 1.0)")
        .replace(
            "stop_process_group()",
            "import time\n"
            "if dist.get_rank() == 1:\n"
            "    for _ in range(40):\n"
            "        time.sleep(0.1)\n"
            "        watching.tick()\n"
            "stop_process_group()",
        )
    )
    assert run_ranks(tmp_path, code).returncode == 0


def test_why_a_run_hung_is_recorded(tmp_path):
    code = CODE.replace(", 600)", ", 0.5)").replace("1e-5", "0.1")
    code = code.replace(
        "stop_process_group()",
        "import time\n"
        "from pathlib import Path\n"
        "watching.record = lambda why: Path('why').write_text(why)\n"
        "time.sleep(60 * dist.get_rank())\n"
        "stop_process_group()",
    )
    assert run_ranks(tmp_path, code).returncode != 0
    assert "rank 1 hangs while ending" in (tmp_path / "why").read_text()


def test_time_in_which_a_job_is_suspended_does_not_count():
    code = """
import os, sys, time
from caat.supervision import watchdog
watchdog.POLL_SECONDS = 0.1
watching = watchdog.Watchdog(None, 0, 1, 1.5)
print("ready", flush=True)
time.sleep(1)
watching.stop()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0


def test_a_pass_ticks_in_every_layer_and_direction():
    model, ticks = build(Mesh(4), 0.5), []
    tick_in(model, lambda *_: ticks.append(1))
    tokens, targets = batch()
    loss = model(tokens, targets).mean()
    assert len(ticks) == len(model.blocks)
    loss.backward()
    assert len(ticks) == len(model.blocks) + len(list(model.parameters()))
