"""Choose the device of this process and set up the process group."""

from __future__ import annotations

import os
import secrets
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from caat.parallel.priority import sums_first
from caat.parallel.timeout import GROUP_TIMEOUT
from caat.parallel.world import be_alone, launched, master, use_gpu
from caat.supervision.flight_recorder import remember_collectives
from caat.supervision.rendezvous import meet

# Compute types by the name that the user gives.
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def choose_device(
    requested: str, local_rank: int, local_processes: int, backend: str = "auto", prefix: str = "launch."
) -> torch.device:
    """Return the device to compute on; ``auto`` means CUDA if each process of this node gets its own GPU.

    Otherwise ``auto`` means the CPU. With the ``gloo`` backend processes may share GPUs. Raises
    ``ValueError``, with the ``prefix`` of the settings, if ``cuda`` or ``nccl`` is requested and there are
    too few GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    enough = gpus >= (1 if backend == "gloo" else local_processes)
    if not enough and (requested == "cuda" or backend == "nccl"):
        asked = f"{prefix}device=cuda" if requested == "cuda" else f"{prefix}backend=nccl"
        share = f", set {prefix}backend=gloo to let them share" if gpus else ""
        raise ValueError(
            f"{asked} needs a GPU for each of {local_processes} processes, but this node has {gpus}: "
            f"start fewer processes{share}, or set {prefix}device=cpu"
        )
    if requested == "cpu" or not enough:
        if requested == "auto" and gpus and local_rank == 0:
            print(
                f"note: {local_processes} processes but GPUs for only {gpus}: computing on the CPU. "
                "launch.backend=gloo lets processes share a GPU",
                file=sys.stderr,
            )
        return torch.device("cpu")
    return torch.device("cuda", local_rank % gpus)


def start_process_group(
    device: torch.device, timeout: timedelta = GROUP_TIMEOUT, backend: str = "auto"
) -> None:
    """Join the process group that torchrun describes in the environment, or create one of size 1.

    ``backend`` ``auto`` means NCCL for a CUDA ``device`` and gloo for the CPU.
    """
    # DeepSpeed selects an accelerator when it is imported, which must be the same as ours.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl":
        # Gloo's stacks show who waits in what, so its messages need not be recorded.
        remember_collectives()
    if launched():
        store, rank, world = next(rendezvous("env://", timeout=timeout))
        # After a restart torchrun reuses the store, which still holds the addresses of dead processes.
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
    """Open a second connection to the rendezvous store, for use by a thread. None if the world size is 1."""
    if dist.get_world_size() == 1:
        return None
    store = dist.TCPStore(*master(), is_master=False, timeout=timedelta(seconds=30))
    name: list[str | None] = [secrets.token_hex(8)]
    dist.broadcast_object_list(name, src=0)
    return dist.PrefixStore(f"side-{name[0]}", store)


def stop_process_group() -> None:
    """Destroy the process group. Collective."""
    # After a message has arrived, gloo's threads need the interpreter once more to release its tensor. A
    # process that exits at that moment is aborted. The barrier gives the threads time to finish.
    dist.barrier()
    dist.destroy_process_group()
