"""The place of this process in the world: the only reader of the variables that torchrun sets.

Every function reads the environment when it is called. Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Set by torchrun alone; other launchers set PLACE.
OF_TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
# The number of processes that mpirun, PMI and srun start, without a rank for torch.
OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_by_torchrun() -> bool:
    """Whether torchrun itself, or our own use of its agent, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_rank() -> bool:
    """Whether this process prints on behalf of all. Never raises, whatever the variables hold."""
    return os.environ.get("RANK", "0") == "0"


def rank_name() -> str:
    """Return the rank as text, for messages. Never raises, whatever the variables hold."""
    return os.environ.get("RANK", "0")


def world_size() -> int:
    """Return the number of processes; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """Return the rank of this process on its node; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def local_world_size(*, unknown: int) -> int:
    """Return the processes on this node: ``unknown`` if the launcher does not say, 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(unknown))) if launched() else 1


def restarted() -> bool:
    """Whether torchrun has restarted the processes after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether torchrun will restart the processes if one dies."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def master() -> tuple[str, int]:
    """Return host and port of the rendezvous store."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def be_alone() -> None:
    """Set the variables that DeepSpeed reads, for a single process."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")


def use_gpu(index: int) -> None:
    """Set the local rank to the GPU's index: DeepSpeed derives its device from it, even for shared GPUs."""
    os.environ["LOCAL_RANK"] = str(index)


def variables(rank: int, size: int, address: str, port: int) -> dict[str, str]:
    """Return the variables that a launcher sets for rank ``rank`` of ``size``, with one rank per host."""
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",
    }


@cache
def check_launcher() -> None:
    """Raise ``ValueError`` if RANK is set and the other variables are incomplete or invalid.

    Without RANK they are leftovers in the shell, and are unset; but another launcher may have started this as
    one of several processes, which know nothing of each other. Checked only once per process, because the
    process itself may set the variables later for libraries.
    """
    if "RANK" not in os.environ:
        for name in OTHER_LAUNCHERS:
            if (given := os.environ.get(name, "1")) != "1":
                raise ValueError(
                    f"{name}={given}: this is one of {given} processes, but without RANK each would train by "
                    "itself. Give launch.processes=N, or start torchrun once on each node, as slurm/train.sh"
                )
        for name in (*PLACE, *OF_TORCHRUN):
            os.environ.pop(name, None)
        return
    problem = _problem(os.environ)
    if problem:
        # Unset, so that the message is not attributed to this rank.
        rank = os.environ.pop("RANK")
        raise ValueError(
            f"RANK={rank} is set, as by torchrun, {problem}: start with torchrun, or unset RANK "
            "(it may be left in the shell)"
        )


def _problem(given: Mapping[str, str]) -> str:
    """Return the first problem with the variables of a process that has a rank; empty if there is none."""
    needed: tuple[str, ...] = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    # Without LOCAL_RANK every process of a node would use the first GPU.
    needed += ("LOCAL_RANK",) if given.get("WORLD_SIZE") not in (None, "1") else ()
    for name in needed:
        if not given.get(name):
            return f"but {name} is {'empty' if name in given else 'not set'}"
    for name in (*PLACE, "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"):
        if name in given and not (given[name].isascii() and given[name].isdecimal()):
            return f"but {name}={given[name]} is not a whole number"
    for name, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if name in given and of in given and int(given[name]) >= int(given[of]):
            return f"but {name}={given[name]} is not below {of}={given[of]}"
    if int(given["MASTER_PORT"]) > 65535:
        return f"but MASTER_PORT={given['MASTER_PORT']} is not a port"
    return ""
