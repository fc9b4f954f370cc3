"""A wrong device or type fails here, without a GPU."""

from __future__ import annotations

import subprocess
import sys


def test_every_tensor_is_on_the_device_of_the_weights():
    command = [sys.executable, "-m", "tests.layers.one_device"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(" cases\n")
