"""Pinned memory of exactly the size that is asked for."""

from __future__ import annotations

import torch

from caat.parallel.pinned import empty_pinned

MEGABYTE = 2**20


def test_pinned_memory_is_not_rounded_up_and_is_given_back() -> None:
    before = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    for _ in range(3):
        buffers = [empty_pinned((65, MEGABYTE // 4 + 1), torch.float32) for _ in range(2)]
        assert all(buffer.is_pinned() for buffer in buffers)
        numbers = torch.randn(buffers[0].shape, device="cuda")
        buffers[0].copy_(numbers, non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(buffers[0], numbers.cpu())
        # Pinning pages that are pinned already fails, so the next round shows that they were given back.
        del buffers
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) < before + 64 * MEGABYTE


def test_nothing_needs_no_pinned_memory() -> None:
    assert empty_pinned((0, 4), torch.bfloat16).shape == (0, 4)
