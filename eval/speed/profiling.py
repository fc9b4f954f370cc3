"""Profiles a step with torch's profiler: time by kind of operation, and memory saved for backward."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from conf.bench import BenchStackConfig
from eval.speed.variants import Variant, network_variants

# Operations by their names in the profiler, which reports self time without callees.
OPERATIONS = {
    "gemm": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"),
    "copy": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous"),
}


def profile_rows(config: BenchStackConfig, device: torch.device) -> list[dict]:
    """Return a row for each variant of ``caat bench step``, for this process."""
    return [
        {"mode": variant.mode, "ratio": variant.ratio, **_profile(variant, config.rounds, device)}
        for variant in network_variants(config, device)
    ]


def _profile(variant: Variant, rounds: int, device: torch.device) -> dict[str, float]:
    saved = _saved_bytes(variant)
    dist.barrier()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(rounds):
            variant.step()
    kinds = {name: kind for kind, names in OPERATIONS.items() for name in names}
    times: dict[str, float] = defaultdict(float)
    copies = 0
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if event.key.startswith(("aten::", "_")):
            times[kinds.get(event.key, "other")] += microseconds / 1e3 / rounds
        copies += event.count if event.key in ("aten::clone", "aten::cat") else 0
    return {
        "gemm_ms": times["gemm"],
        "copy_ms": times["copy"],
        "copies": copies / rounds,
        "other_ms": times["other"],
        "saved_bytes": saved,
    }


def _saved_bytes(variant: Variant) -> int:
    """Return the bytes of activations saved for backward, without weights."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x if x._base is None else x._base, nn.Parameter):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        variant.step()
    return sum(sizes.values())
