"""Which device this process computes on, and the process group over it."""

from __future__ import annotations

import os
import secrets
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from caat.parallel.patience import PATIENCE
from caat.parallel.priority import sums_first
from caat.parallel.world import be_alone, launched, master, use_gpu
from caat.supervision.meeting import meet

# What is computed with, by the name that the user gives.
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def choose_device(
    requested: str, local_rank: int, local_processes: int, backend: str = "auto"
) -> torch.device:
    """``auto`` is CUDA where each of this node's processes can have a GPU of its own, else the CPU.

    With the ``gloo`` backend the processes share the GPUs that there are. Raises ``ValueError`` if ``cuda``
    or ``nccl`` is asked for and there are too few GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    enough = gpus >= (1 if backend == "gloo" else local_processes)
    if not enough and (requested == "cuda" or backend == "nccl"):
        asked = "launch.device=cuda" if requested == "cuda" else "launch.backend=nccl"
        share = ", launch.backend=gloo to let them share" if gpus else ""
        raise ValueError(
            f"{asked} needs a GPU for each of {local_processes} processes and {gpus} are there: "
            f"start fewer processes{share}, or launch.device=cpu"
        )
    if requested == "cpu" or not enough:
        if requested == "auto" and gpus and local_rank == 0:
            print(
                f"note: {local_processes} processes and GPUs for {gpus}: computing on the CPU. "
                "launch.backend=gloo lets processes share a GPU",
                file=sys.stderr,
            )
        return torch.device("cpu")
    return torch.device("cuda", local_rank % gpus)


def start_process_group(device: torch.device, timeout: timedelta = PATIENCE, backend: str = "auto") -> None:
    """Join the world that torchrun describes in the environment, or be a world of one.

    ``backend`` ``auto`` is NCCL for a CUDA ``device`` and gloo for the CPU.
    """
    # DeepSpeed looks for an accelerator of its own when imported: it must agree with us.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if launched():
        store, rank, world = next(rendezvous("env://", timeout=timeout))
        # After a restart torchrun gives the same store again, in which the addresses of dead processes are.
        store = dist.PrefixStore(meet(store, rank, world, timeout), store)
    else:
        be_alone()
        store, rank, world = dist.HashStore(), 0, 1
    if device.type == "cuda":
        use_gpu(device.index)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world,
        timeout=timeout,
        device_id=device if backend == "nccl" else None,
        pg_options=sums_first(backend, timeout),
    )


def side_store() -> dist.Store | None:
    """A connection of its own to the store that the ranks met by, for a thread; None for a world of one."""
    if dist.get_world_size() == 1:
        return None
    store = dist.TCPStore(*master(), is_master=False, timeout=timedelta(seconds=30))
    name: list[str | None] = [secrets.token_hex(8)]
    dist.broadcast_object_list(name, src=0)
    return dist.PrefixStore(f"side-{name[0]}", store)


def stop_process_group() -> None:
    """Leave the world, together with all other ranks."""
    # Gloo's threads need the interpreter once more after a message has arrived, to let go of its tensor. A
    # process that ends right then is aborted; the barrier gives them the time.
    dist.barrier()
    dist.destroy_process_group()
