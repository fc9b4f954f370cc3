"""torchft's DiLoCo, as a peer of `caat bench islands`: plain torch inside, torchft's manager between."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.ledger import Ledger
from caat.parallel.lighthouse import own_address
from caat.parallel.mesh import Mesh
from caat.parallel.ring import ring_bytes
from caat.parallel.world import master
from conf.bench import BenchIslandsConfig
from conf.islands import IslandsConfig
from eval.speed.replicas import Replica, batches_of, model_of, plain_optimizer, plain_step

MODE = "torchft, diloco"
# The islands of a round come to it within a step of each other, but rounds are far apart.
TIMEOUT = timedelta(minutes=10)


def torchft_diloco(config: BenchIslandsConfig) -> Replica:
    """Return an island of one process that torchft's manager and DiLoCo exchange with. Collective.

    The model, AdamW, clipping and outer optimizer are those of the row `diloco, none`, without ZeRO. Messages
    of torchft's manager and lighthouse are not counted.
    """
    # Their own logs name every connection, and miss a recorder of NCCL.
    os.environ.setdefault("RUST_LOG", "warn")
    logging.getLogger("torchft").setLevel(logging.ERROR)
    from torchft import local_sgd

    ledger, model, batches = Ledger(), model_of(config, Mesh(1)), batches_of(config)
    settings = IslandsConfig("diloco", every=config.every)
    outer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, nesterov=True)
    optimizer = plain_optimizer(model)
    manager = _manager(lambda nbytes: ledger.count(ring_bytes(nbytes, config.replicas), "step", "weights"))
    diloco = local_sgd.DiLoCo(manager, [model], optimizer, outer, config.every, pin_memory=False)
    # Never left: the process ends with the benchmark.
    diloco.__enter__()

    def step() -> float:
        ledger.reset()
        loss = plain_step(model, optimizer, batches)
        # torchft goes on after a failed exchange, which would be timed as a fast one.
        if failed := manager.errored():
            raise failed.original_exception
        return loss

    return Replica(MODE, step, ledger)


def _manager(count: Callable[[int], None]):
    """Return torchft's manager of an island of this process; the lighthouse is on the first rank.

    ``count`` is called with the bytes of each all-reduce.
    """
    from torchft import Manager, ProcessGroupGloo

    class Counted(ProcessGroupGloo):
        def allreduce(self, tensors: list[Tensor], options: Any) -> dist.Work:
            count(sum(tensor.nbytes for tensor in tensors))
            return super().allreduce(tensors, options)

    here = own_address(*master())
    group = Counted(timeout=TIMEOUT)
    # The manager only connects to the store, which must live as long.
    group.store = store = dist.TCPStore(here, 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        group,
        load_state_dict=lambda state: None,
        state_dict=dict,
        min_replica_size=dist.get_world_size(),
        # torchft's DiLoCo demands it.
        use_async_quorum=False,
        timeout=TIMEOUT,
        quorum_timeout=TIMEOUT,
        rank=0,
        world_size=1,
        store_addr=here,
        store_port=store.port,
        lighthouse_addr=_lighthouse(here),
        replica_id=f"island-{dist.get_rank()}",
        hostname=here,
        # All begin with the same weights.
        init_sync=False,
    )
    atexit.register(manager.shutdown)
    return manager


def _lighthouse(here: str) -> str:
    """Start a lighthouse on the first rank; return its address on all. Collective."""
    box = [""]
    if dist.get_rank() == 0:
        from torchft.coordination import LighthouseServer

        server = LighthouseServer(bind="0.0.0.0:0", min_replicas=dist.get_world_size())
        atexit.register(server.shutdown)
        box = [f"http://{here}:{server.address().rpartition(':')[2]}"]
    dist.broadcast_object_list(box, src=0)
    return box[0]
