"""The variables by which torchrun, or a launcher like it, tells a process its place among others."""

from __future__ import annotations

import os
from functools import cache

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# What else is of no meaning to a process that has no rank.
OF_TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")


@cache
def check_launcher() -> None:
    """Raise ``ValueError`` unless the variables are whole, or mean nothing: then they are unset.

    They mean nothing without RANK: somebody left them in the shell. Once in each process, which may set them
    for libraries later.
    """
    if "RANK" not in os.environ:
        for name in (*PLACE, *OF_TORCHRUN):
            os.environ.pop(name, None)
        return
    problem = _problem(os.environ)
    if problem:
        # What is said is not to be attributed to it.
        rank = os.environ.pop("RANK")
        raise ValueError(
            f"RANK={rank} is set, as by torchrun, {problem}: start with torchrun, or unset RANK "
            "(it may be left in the shell)"
        )


def _problem(given: os._Environ[str]) -> str:
    """What is wrong with the variables of a process with a rank; empty if nothing."""
    needed: tuple[str, ...] = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    # Every process of a node would take the first GPU.
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
