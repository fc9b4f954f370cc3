"""Measures training steps of islands, against replicas that sum their gradients at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from caat.parallel.ledger import Ledger
from caat.parallel.mesh import Mesh
from caat.training.engine import Engine
from conf.bench import BenchIslandsConfig
from conf.data_sync import WEIGHTS_CODECS, DataSyncConfig
from conf.islands import IslandsConfig
from eval.speed.measure import slowest
from eval.speed.replicas import LR, NOTHING, OPTIM, PLAIN, SEED, batches_of, model_of
from eval.speed.timing import Times, take_turns

# Steps of a turn of the variants that do the same in every step.
FEW = 3


@dataclass
class Trainer:
    """One variant on this rank. ``step`` takes a training step; a turn is ``turn`` steps."""

    mode: str
    turn: int
    step: Callable[[], None]
    ledgers: tuple[Ledger, ...]
    sent: int = 0

    def run(self) -> None:
        """Take a turn, and count the bytes that this rank sends in it."""
        self.sent = 0
        for _ in range(self.turn):
            self.step()
            self.sent += sum(sum(ledger.sent.values()) for ledger in self.ledgers)


def island_rows(config: BenchIslandsConfig) -> list[dict]:
    """Return a row for each variant: time of a step, and the bytes that a rank sends in ``every`` steps.

    ``exposed_ms`` is the time above that of a step in which only the loss is sent, ``speed_up`` the time of
    plain DeepSpeed divided by the variant's, both round by round. Collective.
    """
    variants = [
        _trainer(config, NOTHING, Mesh.create(1, 1, islands=config.replicas), FEW),
        _trainer(config, PLAIN, _plain(), FEW),
        *(_synchronous(config, codec) for codec in config.codecs),
        *(_islands(config, codec, 0) for codec in config.codecs),
        _islands(config, config.codecs[-1], config.island_delay),
    ]
    for variant in variants:
        variant.step()
    runs = {variant.mode: variant.run for variant in variants}
    show = dist.get_rank() == 0
    times = take_turns(runs, config.rounds, warm_up=0, before=dist.barrier, show=show)
    turns = {variant.mode: variant.turn for variant in variants}
    times = {
        mode: slowest(Times([value / turns[mode] for value in each.values])) for mode, each in times.items()
    }
    return [
        {
            "mode": variant.mode,
            "step_ms": (own := times[variant.mode]).median,
            "spread_ms": own.spread,
            "exposed_ms": own.above(times[NOTHING]).median,
            "speed_up": times[PLAIN].ratio_to(own),
            "tokens_per_second": config.step_tokens / own.median * 1e3,
            "bytes": variant.sent * config.every // variant.turn,
        }
        for variant in variants
    ]


def _plain() -> Mesh:
    mesh = Mesh.create(1, 1)
    # DeepSpeed's own messages, by the backend's own collectives.
    mesh.data.zero = None
    return mesh


def _synchronous(config: BenchIslandsConfig, codec: str) -> Trainer:
    weights = codec if codec in WEIGHTS_CODECS else "int8"
    mesh = Mesh.create(1, 1, data_sync=DataSyncConfig(codec, weights_codec=weights), seed=SEED)
    return _trainer(config, f"synchronous, {codec}", mesh, FEW)


def _islands(config: BenchIslandsConfig, codec: str, delay: int) -> Trainer:
    settings = IslandsConfig("diloco", every=config.every, delay=delay, codec=codec)
    mode = f"diloco, {codec}" + (f", delay {delay}" if delay else "")
    return _trainer(config, mode, Mesh.create(1, 1, islands=config.replicas), config.every, settings)


def _trainer(
    config: BenchIslandsConfig, mode: str, mesh: Mesh, turn: int, islands: IslandsConfig | None = None
) -> Trainer:
    model, batches, steps = model_of(config, mesh), batches_of(config), 0
    how = {"stage": 1, "precision": "fp32", "accumulation": config.accumulation}
    engine = Engine(model, mesh, OPTIM, **how, islands=islands, seed=SEED)  # type: ignore[arg-type]

    def step() -> None:
        nonlocal steps
        steps += 1
        mesh.data.start_step(steps)
        mesh.islands.ledger.reset()
        engine.step(batches, LR)
        engine.outer_step(steps)

    return Trainer(mode, turn, step, (mesh.data.ledger, mesh.islands.ledger))
