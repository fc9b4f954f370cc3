"""Which device this process computes on, and the process group over it."""

from __future__ import annotations

import os
import secrets
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from caat.training.meeting import meet

# What is computed with, by the name that the user gives.
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def choose_device(requested: str, local_rank: int, local_processes: int) -> torch.device:
    """``auto`` is CUDA where each of this node's processes can have a GPU of its own, else the CPU.

    Raises ``ValueError`` if ``cuda`` is asked for and there are too few GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "cuda" and gpus < local_processes:
        raise ValueError(
            f"launch.device=cuda needs a GPU for each of {local_processes} processes and {gpus} are there: "
            "start fewer processes, or launch.device=cpu"
        )
    if requested == "cpu" or gpus < local_processes:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def start_process_group(device: torch.device, timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the world that torchrun describes in the environment, or be a world of one."""
    # DeepSpeed looks for an accelerator of its own when imported: it must agree with us.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        store, rank, world = next(rendezvous("env://", timeout=timeout))
        # After a restart torchrun gives the same store again, in which the addresses of dead processes are.
        store = dist.PrefixStore(meet(store, rank, world, timeout), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def side_store() -> dist.Store | None:
    """A connection of its own to the store that the ranks met by, for a thread; None for a world of one."""
    if dist.get_world_size() == 1:
        return None
    env = os.environ
    address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
    name: list[str | None] = [secrets.token_hex(8)]
    dist.broadcast_object_list(name, src=0)
    return dist.PrefixStore(f"side-{name[0]}", store)


def stop_process_group() -> None:
    """Leave the world, together with all other ranks."""
    # Gloo's threads need the interpreter once more after a message has arrived, to let go of its tensor. A
    # process that ends right then is aborted; the barrier gives them the time.
    dist.barrier()
    dist.destroy_process_group()
