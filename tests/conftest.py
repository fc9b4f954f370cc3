"""Fixtures shared by all tests: the pools of ranks."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Tensors are small, and several processes run at once: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """``ranks(world)`` returns a pool of that many processes, a new one if the last is broken or worn out."""
    pools: dict[int, Ranks] = {}

    def get(world: int) -> Ranks:
        if world not in pools or not pools[world].fresh:
            if world in pools:
                pools[world].close()
            pools[world] = Ranks(world)
        return pools[world]

    yield get
    for pool in pools.values():
        pool.close()
