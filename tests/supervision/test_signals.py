"""Stop signals: the first is a request, the second Ctrl-C ends the process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caat.supervision.signals import StopRequest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_stop_signal_is_a_request(number):
    # A shell starts jobs in the background with SIGINT ignored, and what is ignored stays so.
    before = signal.signal(number, signal.default_int_handler)
    try:
        with StopRequest() as request:
            request.training = True
            assert request.number == 0
            os.kill(os.getpid(), number)
            assert request.number == number
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("state", "signals", "says"),
    [
        ("training", [signal.SIGINT, signal.SIGINT], "stopped at once by a second Ctrl-C"),
        ("training", [signal.SIGINT, signal.SIGTERM], "stopped at once by a second Ctrl-C"),
        ("", [signal.SIGINT], "interrupted before training began: there was nothing to save"),
        ("closing", [signal.SIGTERM, signal.SIGTERM], "stopped at once by a second Ctrl-C"),
    ],
)
def test_ctrl_c_ends_what_computes_at_once(state, signals, says):
    """Though the main thread is not in Python, as in a product of matrices or a collective."""
    code = f"""
import ctypes, signal
from caat.supervision.signals import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopRequest() as request:
    request.training, request.closing = {state != ""}, {state == "closing"}
    request.record = lambda why: print("recorded:", why, flush=True)
    print("ready", flush=True)
    # An interrupted sleep returns what is left.
    left = 60
    while left:
        left = ctypes.CDLL(None).sleep(left)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == 130, printed
    assert f"caat: {says}" in printed
    # The status of a run that has ended stays.
    assert (f"recorded: {says}" in printed) == (state != "closing")
    assert ("Ctrl-C: finishing this step, then saving" in printed) == (state == "training")
    assert ("the run has ended and is saved" in printed) == (state == "closing")


def test_a_terminal_that_closes_stops_the_run_and_not_its_save(tmp_path):
    """The kernel sends SIGHUP, and writing to the terminal fails from then on."""
    code = f"""
import fcntl, pathlib, signal, termios
from caat.supervision.signals import StopRequest
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with StopRequest() as request:
    request.training = True
    print("ready", flush=True)
    while not request.number:
        signal.pause()
    print("saving", flush=True)
    pathlib.Path({str(tmp_path / "saved")!r}).write_text(signal.Signals(request.number).name)
"""
    ours, theirs = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, **streams)
    os.close(theirs)
    assert os.read(ours, 5) == b"ready"
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "saved").read_text() == "SIGHUP"
