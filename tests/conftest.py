"""Fixtures shared by all tests: the pools of ranks."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch

from tests.ranks import Ranks

# Tensors are small: on busy cores, more threads would only wait for each other.
torch.set_num_threads(1)


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
