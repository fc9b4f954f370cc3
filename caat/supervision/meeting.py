"""How the ranks of one start find each other through a store that those of an earlier start used too."""

from __future__ import annotations

import secrets
import sys
from datetime import timedelta
from time import monotonic, sleep

import torch.distributed as dist

# Between two looks at who has come.
POLL_SECONDS = 0.02
# Ranks of another node may still prepare their text; one that never came is to be known all the same.
TELL_SECONDS = 60.0


def meet(store: dist.Store, rank: int, world: int, timeout: timedelta) -> str:
    """A name that the first rank gives to all that are alive now; raises ``RuntimeError`` if not all come.

    Each rank asks with a word of its own, so that no answer is an old one. The restarts that torchrun counts
    would not do as a name: each node counts those of its own processes.
    """
    if rank > 0:
        word = secrets.token_hex(8)
        store.set(f"asks/{rank}", word)
        store.wait([f"answer/{word}"], timeout)
        name = store.get(f"answer/{word}").decode()
        store.set(f"{name}/{rank}", "")
        return name
    name, missing = f"meeting-{secrets.token_hex(8)}", set(range(1, world))
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
            raise RuntimeError(f"ranks {sorted(missing)} have not come within {timeout}")
        sleep(POLL_SECONDS)
    return name
