"""What DeepSpeed needs of us: its import without side effects, and the topology of the mesh."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from unittest.mock import patch

import torch.distributed as dist

from caat.parallel.mesh import Mesh


@cache
def import_deepspeed():
    """Import DeepSpeed, without the messages and compilation of features that we do not use."""
    import deepspeed
    from deepspeed.runtime import bf16_optimizer, compiler
    from deepspeed.utils import numa

    # DeepSpeed would run the C++ compiler to learn which extensions it can build, and build one of them for a
    # collective that we do not use.
    deepspeed.ops.__compatible_ops__ = {}
    # Every ZeRO optimizer imports Muon, which prepares to compile its functions: seconds in every process.
    with patch.object(compiler, "compile", lambda: compiler.dummy_decorator):
        import deepspeed.runtime.zero.muon.original_muon
    # On CPUs, stage 3 runs numactl for every reduction.
    numa.get_numa_cores = cache(numa.get_numa_cores)
    # Collects garbage and prints figures to stdout, several times for each parameter group.
    bf16_optimizer.see_memory_usage = lambda *_, **__: None
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # torch's warnings about functions that DeepSpeed calls, which users cannot fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed


class Mpu:
    """The tensor-parallel topology in the interface that DeepSpeed expects."""

    def __init__(self, mesh: Mesh) -> None:
        # DeepSpeed needs a group even for a single process.
        self._mesh = mesh
        self._tensor_group = mesh.tensor.group or dist.new_group([dist.get_rank()])
        self._data_group = mesh.data.process_group or dist.group.WORLD

    def get_model_parallel_rank(self):
        return self._mesh.tensor_rank

    def get_model_parallel_world_size(self):
        return self._mesh.processes

    def get_model_parallel_group(self):
        return self._tensor_group

    def get_data_parallel_rank(self):
        return self._mesh.data_rank

    def get_data_parallel_world_size(self):
        return self._mesh.data_size

    def get_data_parallel_group(self):
        return self._data_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
