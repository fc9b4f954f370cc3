"""`caat islands`: the lighthouse as a user sees it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from importlib.util import find_spec
from threading import Thread

import pytest

from caat.parallel.lighthouse_page import Seen, read_page
from conf.lighthouse import LighthouseConfig, split_address
from launch import islands
from launch.run import joining
from launch.run.build import _as_now, _first_state
from launch.run.compose import compose

needs_torchft = pytest.mark.skipif(find_spec("torchft") is None, reason="needs torchft: caat[islands]")


def start(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.islands", f"port={port}", "silence=2", "host=here"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@needs_torchft
def test_it_shows_who_comes_and_goes():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        there, refused = start(0), start(taken.getsockname()[1])
        assert there.stdout is not None
        joining = there.stdout.readline().split()
        assert joining[:2] == ["caat", "pretrain"]
        port = int(joining[2].removeprefix("islands.join=here:"))
        _, problem = refused.communicate(timeout=60)
        assert refused.returncode == 2
        assert f"port={taken.getsockname()[1]} cannot be used" in problem.splitlines()[-1]

    from torchft.coordination import LighthouseClient

    client = LighthouseClient(f"http://127.0.0.1:{port}", timedelta(seconds=10))
    client.quorum("b:1", timedelta(seconds=10), address="", store_address="", step=3, world_size=2)
    client.heartbeat("a.b-c:2", timedelta(seconds=10))
    ids = {(seen.id, seen.name, seen.round, seen.processes) for seen in read_page(f"127.0.0.1:{port}", 10)}
    assert ids == {("b:1", "b", 3, 2), ("a.b-c:2", "a.b-c", None, None)}
    seen = {there.stdout.readline().split(" ", 1)[1] for _ in range(4)}
    assert seen == {
        "b: round 3, 2 processes\n",
        "a.b-c: alive, not in the last round\n",
        "b: gone\n",
        "a.b-c: gone\n",
    }
    there.send_signal(signal.SIGINT)
    _, errors = there.communicate(timeout=60)
    assert there.returncode == 0 and "Traceback" not in errors
    with pytest.raises(OSError, match="refused"):
        read_page(f"127.0.0.1:{port}", 10)


def answer_like_ssh(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def test_what_answers_may_be_no_lighthouse(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        started = time.monotonic()
        with pytest.raises(OSError):
            read_page(f"127.0.0.1:{other.getsockname()[1]}", 0.2)
        assert time.monotonic() - started < 2
        other.accept()[0].close()
        server = Thread(target=answer_like_ssh, args=(other,))
        server.start()
        with pytest.raises(OSError, match="no lighthouse"):
            read_page(f"127.0.0.1:{other.getsockname()[1]}", 5)
        server.join()
    monkeypatch.setattr(islands, "installed", lambda module: False)
    with pytest.raises(ValueError, match="pip install 'torchft"):
        islands.main([])


def test_the_last_start_of_an_island_counts():
    found = [Seen("a:1", 90.0, 7, 2), Seen("a:2", 1.0), Seen("b:1", 6.0, 7, 1)]
    assert [(seen.id, islands.status(seen, 5.0)) for seen in islands.latest(found)] == [
        ("a:2", "alive, not in the last round"),
        ("b:1", "gone"),
    ]
    assert islands.table(found, 5.0).row_count == 2


def test_a_run_needs_a_lighthouse(monkeypatch):
    config = compose(["islands.join=127.0.0.1:1"])
    monkeypatch.setattr(joining, "installed", lambda module: True)
    with pytest.raises(ValueError, match=r"islands.join=127.0.0.1:1: no lighthouse answers .*caat islands"):
        joining.check_joining(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    joining.check_joining(config)
    monkeypatch.setattr(joining, "installed", lambda module: False)
    with pytest.raises(ValueError, match=r"islands.join needs torchft: pip install 'torchft>=0.2'"):
        joining.check_joining(config)


def test_islands_read_in_another_order(tmp_path):
    config = compose(["islands.join=a:1"])
    seeds = {joining.data_seed(config, tmp_path / name) for name in ("paris", "berlin")}
    config.islands.name = "paris"
    assert len(seeds) == 2 and joining.data_seed(config, tmp_path / "x") in seeds
    assert joining.data_seed(compose([]), tmp_path) == 1
    assert joining.island_name(compose(["islands.join=a:1"]), tmp_path / "a b=c") == "a-b-c"


def test_another_order_is_said_when_it_is_resumed(tmp_path):
    """The position in the data counts in the order of the island's name; older states do not know theirs."""
    config = compose(["islands.join=a:1"])
    paris, berlin = (joining.data_seed(config, tmp_path / name) for name in ("paris", "berlin"))
    saved, notes = _as_now(_first_state(config, "text"), config, paris)
    assert saved.order == paris and notes == []
    assert _as_now(saved, config, paris)[1] == []
    assert "another order from here on" in _as_now(saved, config, berlin)[1][0]


@pytest.mark.parametrize("text", ["login1", "login1:", ":29510", "a:b", "a:0", "a:70000", "http://a:1", ""])
def test_addresses(text):
    with pytest.raises(ValueError, match=r"islands.join=.* is not HOST:PORT"):
        split_address(text, "islands.join")
    assert split_address("[::1]:29510", "x") == ("::1", 29510)
    for wrong in ({"port": 70000}, {"wait": -1.0}, {"silence": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LighthouseConfig(**wrong)
