"""Measures training steps of islands, against replicas that sum their gradients at every step."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch.distributed as dist

from caat.parallel.mesh import Mesh
from conf.bench import BenchIslandsConfig
from conf.data_sync import DataSyncConfig
from conf.islands import IslandsConfig
from conf.optim import OptimConfig
from eval.speed.measure import slowest
from eval.speed.replicas import NOTHING, OPTIM, PLAIN, SEED, Replica, by_engine, plain_deepspeed
from eval.speed.timing import Times, take_turns
from eval.speed.torchft_peer import torchft_diloco

# Steps of a turn of the variants that do the same in every step.
FEW = 3


@dataclass
class Turns:
    """Turns of ``steps`` training steps of a replica. :attr:`sent` are the bytes of the last turn."""

    replica: Replica
    steps: int
    sent: int = 0

    def run(self) -> None:
        """Take a turn."""
        self.sent = 0
        for _ in range(self.steps):
            self.replica.step()
            for ledger in (self.replica.ledger, self.replica.outer_ledger):
                self.sent += sum(ledger.sent.values())
        self.replica.drain()


def island_rows(config: BenchIslandsConfig) -> list[dict]:
    """Return a row for each variant: time of a step, and the bytes that a rank sends in ``every`` steps.

    ``exposed_ms`` is the time above that of a step in which only the loss is sent, ``speed_up`` the time of
    plain DeepSpeed divided by the variant's, both round by round. Collective.
    """
    alone, every = Mesh.create(1, 1, islands=config.replicas), config.every
    variants = [
        Turns(by_engine(config, NOTHING, alone), FEW),
        Turns(plain_deepspeed(config), FEW),
        *(Turns(_synchronous(config, codec), FEW) for codec in config.codecs),
        *([Turns(torchft_diloco(config), every)] if find_spec("torchft") else []),
        *(Turns(_islands(config, optim, settings), every) for optim, settings in island_settings(config)),
    ]
    for variant in variants:
        variant.replica.step()
    runs = {variant.replica.mode: variant.run for variant in variants}
    show = dist.get_rank() == 0
    measured = take_turns(runs, config.rounds, warm_up=0, before=dist.barrier, show=show)
    times = {
        variant.replica.mode: slowest(
            Times([value / variant.steps for value in measured[variant.replica.mode].values])
        )
        for variant in variants
    }
    return [_row(variant, times, config) for variant in variants]


def _row(variant: Turns, times: dict[str, Times], config: BenchIslandsConfig) -> dict:
    own = times[variant.replica.mode]
    return {
        "mode": variant.replica.mode,
        "step_ms": own.median,
        "spread_ms": own.spread,
        "exposed_ms": own.above(times[NOTHING]).median,
        "speed_up": times[PLAIN].ratio_to(own),
        "tokens_per_second": config.step_tokens / own.median * 1e3,
        "bytes": variant.sent * config.every // variant.steps,
    }


def island_settings(config: BenchIslandsConfig) -> list[tuple[OptimConfig, IslandsConfig]]:
    """Return the settings of each row of islands."""
    every, last = config.every, config.codecs[-1]
    return [
        *((OPTIM, IslandsConfig("diloco", every=every, codec=codec)) for codec in config.codecs),
        (OPTIM, IslandsConfig("diloco", every=every, codec=last, delay=config.island_delay)),
        (OPTIM, IslandsConfig("diloco", every=every, codec=last, eager=True)),
        (OptimConfig(name="lamb"), IslandsConfig("slamb", every=every, codec=last)),
        (OptimConfig(name="sgd"), IslandsConfig("dcs3gd", every=1, codec=last)),
    ]


def synchronous_mode(codec: str) -> str:
    """Return the name of the row of replicas that sum their gradients through ``codec``."""
    return f"synchronous, {codec}"


def island_mode(settings: IslandsConfig) -> str:
    """Return the name of the row of islands with these settings."""
    mode = f"{settings.method}, {settings.codec}"
    return mode + f", delay {settings.delay}" * (settings.delay > 0) + ", eager" * settings.eager


def _synchronous(config: BenchIslandsConfig, codec: str) -> Replica:
    mesh = Mesh.create(1, 1, data_sync=DataSyncConfig.both(codec), seed=SEED)
    return by_engine(config, synchronous_mode(codec), mesh)


def _islands(config: BenchIslandsConfig, optim: OptimConfig, settings: IslandsConfig) -> Replica:
    mesh = Mesh.create(1, 1, islands=config.replicas)
    return by_engine(config, island_mode(settings), mesh, islands=settings, optim=optim)
