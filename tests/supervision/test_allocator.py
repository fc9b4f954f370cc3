"""Memory of freed buffers stays with the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Prints the page faults of a buffer of 64 MB that follows another one: 16,384 if its pages are new.
FAULTS = """
from resource import RUSAGE_SELF, getrusage
{first}
x = b"x" * 2**26
del x
before = getrusage(RUSAGE_SELF).ru_minflt
x = b"x" * 2**26
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from caat.supervision.allocator import keep_large_buffers; keep_large_buffers()"


def faults(first: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(first=first)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_the_pages_of_a_freed_buffer_are_used_again():
    # Huge pages make fewer faults, in both cases.
    assert faults(KEEP) < 0.1 * faults("")
