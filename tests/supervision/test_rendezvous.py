"""Ranks find each other again after a restart, on one node and on several, whatever each node counts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The process of the first node dies once; that of the second would go on, and its node restarts it without
# counting that as a restart.
CODE = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from caat.supervision.device import side_store, start_process_group, stop_process_group
start_process_group(torch.device("cpu"), timedelta(seconds=60))
store = side_store()
before = Path(os.environ["NODE"])
if not before.exists():
    before.touch()
    if before.name == "second":
        time.sleep(60)
    os._exit(1)
numbers = torch.ones(1)
dist.all_reduce(numbers)
store.add("met", 1)
stop_process_group()
print("met", int(numbers), "restarts", os.environ["TORCHELASTIC_RESTART_COUNT"])
"""


@pytest.mark.slow
def test_nodes_that_count_restarts_differently(tmp_path):
    (tmp_path / "job.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{CODE}")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1"]
    common += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "meeting"]
    nodes = [
        subprocess.Popen(
            [sys.executable, *common, str(tmp_path / "job.py")],
            env={**os.environ, "NODE": str(tmp_path / name)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    try:
        ended = [node.communicate(timeout=240) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], ended
    said = sorted(line for out, _ in ended for line in out.splitlines() if line.startswith("met"))
    assert said == ["met 2 restarts 0", "met 2 restarts 1"]
