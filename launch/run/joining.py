"""A run that is an island of its own: its name, its data, and what must be the same on all islands."""

from __future__ import annotations

import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from caat.data.order import mix
from caat.data.prepared import Prepared
from caat.parallel.lighthouse_page import ANSWER_SECONDS, read_page
from caat.parallel.world import restarted
from conf.checks import require
from conf.schema import Config
from launch.command.available import installed
from launch.run.agreement import of_the_function, value_of

if TYPE_CHECKING:
    from caat.parallel.mesh import Mesh
    from caat.supervision.control import Control
    from caat.supervision.watchdog import Watchdog
    from caat.training.islands.joined import Party
    from caat.training.islands.outer_steps import Islands


def check_joining(config: Config) -> None:
    """Raise ``ValueError`` unless torchft is installed and there is a lighthouse at ``islands.join``.

    Restarted processes do without: the lighthouse may have been killed with them, and may come back.
    """
    address = config.islands.join
    if address is None:
        return
    require(installed("torchft"), "islands.join needs torchft: pip install 'torchft>=0.2'")
    if restarted():
        return
    try:
        read_page(address, ANSWER_SECONDS)
    except OSError as error:
        raise ValueError(
            f"islands.join={address}: no lighthouse answers there ({error}). Start one with `caat islands`, "
            "and give the address that it prints"
        ) from error


def island_name(config: Config, folder: Path) -> str:
    """Return ``islands.name``; by default the name of the run folder, which a resumed run keeps."""
    return config.islands.name or re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name)[:64]


def data_seed(config: Config, folder: Path) -> int:
    """Return the seed of the order of the data: each island of ``islands.join`` has an order of its own."""
    if config.islands.join is None:
        return config.seed
    return mix(config.seed, crc32(island_name(config, folder).encode()))


def party_of(
    config: Config, tokens: Prepared, folder: Path, *, mesh: Mesh, control: Control, watchdog: Watchdog
) -> Party | None:
    """Return how this run meets other islands; None unless it joins any. Collective.

    Raises :class:`~caat.parallel.membership.RefusedError` if this machine cannot reach the lighthouse.
    """
    settings = config.islands
    if settings.join is None:
        return None
    import torch.distributed as dist

    from caat.parallel.lighthouse import Lighthouse
    from caat.parallel.meeting import Meeting
    from caat.parallel.membership import RefusedError
    from caat.parallel.timeout import GROUP_TIMEOUT
    from caat.training.islands.joined import Party

    watchdog.beat("looking for the lighthouse")
    name, lighthouse, problem = island_name(config, folder), None, ""
    if control.rank == 0:
        try:
            lighthouse = Lighthouse(settings.join, name, settings.timeout, control.world)
        # What torch's store raises is a RuntimeError.
        except (OSError, RuntimeError) as error:
            problem = f"islands.join={settings.join} cannot be reached: {error}"
    if problem := control.gather(problem)[0]:
        raise RefusedError(problem)
    group = dist.new_group(timeout=GROUP_TIMEOUT, backend="gloo") if control.world > 1 else None
    meeting = Meeting(lighthouse, group, place=control.rank, timeout=settings.timeout)
    return Party(meeting, name, common_settings(config, tokens, mesh), settings.wait_for, watchdog.tick)


def leave(islands: Islands | None) -> None:
    """Leave the other islands, after the last step of this start. Waits for a round in flight."""
    from caat.training.islands.joined import JoinedIslands

    if isinstance(islands, JoinedIslands):
        islands.leave()


def common_settings(config: Config, tokens: Prepared, mesh: Mesh) -> dict[str, str]:
    """Return the settings that must be the same on all islands: their numbers lie in the same places."""
    islands, shards = config.islands, config.parallel.tensor
    lr, momentum = islands.outer_optimizer(1)
    found = {
        **{f"model.{name}": value_of(config.model, name) for name in of_the_function(config.model)},
        "model.padded_vocab_size": config.model.padded_vocab(shards),
        "parallel.tensor": shards,
        "parallel.processes": mesh.processes,
        "the number of replicas": mesh.data_size,
        "zero.stage": config.zero.trained(config.train.precision),
        "train.precision": config.train.precision,
        "sync.ratio": config.sync.describe_ratio(),
        "sync.private_scale": config.sync.private_scale,
        "islands.method": islands.resolved(1),
        "islands.every": islands.every,
        "islands.lr": lr,
        "islands.momentum": momentum,
        "islands.codec": islands.codec,
        "the tokenizer": sha256(tokens.tokenizer.read_bytes()).hexdigest()[:12],
    }
    return {name: str(value) for name, value in found.items()}


def join(islands: Islands | None, config: Config, control: Control, watchdog: Watchdog) -> list[str]:
    """Meet the islands of ``islands.join``, if any; return notes for the user. Collective.

    Raises :class:`~caat.parallel.membership.RefusedError` if they have other settings.
    """
    from caat.training.islands.joined import JoinedIslands

    if not isinstance(islands, JoinedIslands):
        return []
    watchdog.beat("joining the other islands")
    if control.rank == 0:
        print(
            f"caat: at the lighthouse {config.islands.join}, waiting for the next round of the islands there",
            file=sys.stderr,
            flush=True,
        )
    return islands.join()
