"""The processes of a run, in every way to start it: what they import, how they fail and how they stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from launch.command.processes import stopped_by_signals

ROOT = Path(__file__).parents[2]
PARENT = """
import sys
from launch.command.processes import run_workers
sys.exit(run_workers("job", ["word"], 2))
"""


def start(tmp_path: Path, job: str, parent: str = PARENT) -> subprocess.Popen[str]:
    """Run ``job`` as a module in two processes, from a folder with its own ``launch`` and ``conf``."""
    code, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    code.mkdir()
    (code / "job.py").write_text("import os, sys, time\nimport conf.schema, launch.command.errors\n" + job)
    (code / "parent.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{parent}")
    for package in ("conf", "launch"):
        (elsewhere / package).mkdir(parents=True)
        (elsewhere / package / "__init__.py").write_text("raise RuntimeError('not ours')")
    return subprocess.Popen(
        [sys.executable, str(code / "parent.py")],
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_import_what_their_parent_does(tmp_path):
    process = start(
        tmp_path, "print('rank ' + os.environ['RANK'] + ' ' + sys.argv[1] + '\\n', end='', flush=True)"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert sorted(out.split("\n")) == ["", "rank 0 word", "rank 1 word"]


def test_the_first_failure_is_what_is_shown(tmp_path):
    job = "if os.environ['RANK'] == '1': raise RuntimeError('boom')\ntime.sleep(60)"
    process = start(tmp_path, job)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("Traceback") == err.count("RuntimeError: boom") == 1
    assert "caat: job failed: rank 1 ended first, with status 1" in err


def test_what_is_set_for_workers_is_unset_after_them(tmp_path):
    parent = (
        "import os\nfrom launch.command.processes import run_workers\nbefore = dict(os.environ)\n"
        "run_workers('job', [], 2)\nprint(dict(os.environ) == before)\n"
    )
    out, err = start(tmp_path, "pass", parent).communicate(timeout=120)
    assert out == "True\n", err


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_reaches_the_workers(tmp_path):
    job = (
        "import signal\n"
        # Write the line and its end in one call: two processes write to the same pipe.
        "signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b'saved\\n'), sys.exit(0)))\n"
        "os.write(1, b'ready\\n')\ntime.sleep(60)"
    )
    process = start(tmp_path, job)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert out.split() == ["saved", "saved"]
    assert process.returncode == 128 + signal.SIGUSR1
    assert "caat: stopped by SIGUSR1" in err
