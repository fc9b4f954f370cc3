"""Rendezvous of the ranks of one start through a store that still holds keys of earlier starts."""

from __future__ import annotations

import secrets
import sys
from datetime import timedelta
from time import monotonic, sleep

import torch.distributed as dist

# Interval between two checks for new ranks.
POLL_SECONDS = 0.02
# Name the missing ranks after this time: they may still be preparing data, or may have failed to start.
TELL_SECONDS = 60.0


def meet(store: dist.Store, rank: int, world: int, timeout: timedelta) -> str:
    """Agree on a name for this start, chosen by the first rank. Raise ``RuntimeError`` if a rank is missing.

    Each rank asks with a random word, so that it cannot mistake an old answer for a new one. torchrun's
    restart count cannot serve as the name, because each node counts only the restarts of its own processes.
    """
    if rank > 0:
        word = secrets.token_hex(8)
        store.set(f"asks/{rank}", word)
        store.wait([f"answer/{word}"], timeout)
        name = store.get(f"answer/{word}").decode()
        store.set(f"{name}/{rank}", "")
        return name
    name, missing = f"rendezvous-{secrets.token_hex(8)}", set(range(1, world))
    started, told = monotonic(), False
    while missing:
        for each in [each for each in missing if store.check([f"asks/{each}"])]:
            store.set(f"answer/{store.get(f'asks/{each}').decode()}", name)
            if store.check([f"{name}/{each}"]):
                missing.remove(each)
        waited = monotonic() - started
        if missing and waited > TELL_SECONDS and not told:
            told = True
            print(f"caat: waiting for ranks {sorted(missing)}", file=sys.stderr, flush=True)
        if missing and waited > timeout.total_seconds():
            raise RuntimeError(f"ranks {sorted(missing)} did not join within {timeout}")
        sleep(POLL_SECONDS)
    return name
