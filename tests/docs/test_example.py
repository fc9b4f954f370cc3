"""docs/examples/linears.py: short, and the same model on any number of processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "linears.py"


def losses(processes: int) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    result = subprocess.run(
        [*command, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return [float(loss) for loss in re.findall(r"^step \d+ loss (\S+)$", result.stdout, re.MULTILINE)]


def test_any_number_of_processes_trains_the_same_model():
    alone, together = losses(1), losses(2)
    assert len(alone) == 20
    assert alone[-1] < 0.5 * alone[0]
    assert together == pytest.approx(alone, abs=1e-5)


def test_under_forty_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
