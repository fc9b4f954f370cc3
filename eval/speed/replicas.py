"""The variants of `caat bench data`: training steps of the same model whose messages travel differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from caat.optim.adamw import AdamW
from caat.parallel.counted_group import new_counted_group
from caat.parallel.exchange import Finished
from caat.parallel.ledger import Ledger
from caat.parallel.mesh import Mesh
from caat.parallel.zero_messages import ALL_GATHERS, ZeroMessages
from caat.training.engine import Engine
from conf.bench import BenchDataConfig, ReplicaStepsConfig
from conf.islands import IslandsConfig
from conf.optim import OptimConfig
from layers import GPT
from layers.weights import initial_weights

SEED, LR, OPTIM = 1, 1e-4, OptimConfig()
NOTHING, PLAIN = "nothing sent", "deepspeed"
DDP_RANK = 4

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass
class Replica:
    """This process's replica of one variant. ``step`` returns the loss; the ledgers count its messages."""

    mode: str
    step: Callable[[], float]
    ledger: Ledger
    # Messages to other islands, and the wait for those in flight.
    outer_ledger: Ledger = field(default_factory=Ledger)
    drain: Callable[[], None] = lambda: None
    codec: str | None = None
    weights_codec: str | None = None
    # Milliseconds of encoding and decoding, by step.
    coded: list[float] = field(default_factory=list)


class NothingSent(ZeroMessages):
    """Leaves out all messages of gradients and weights: replicas drift apart, at no cost."""

    def reduced(self, name: str, arguments: Sequence[Any]) -> dist.Work:
        return Finished()

    def gathered(self, name: str, arguments: Sequence[Any]) -> dist.Work | None:
        return Finished() if name in ALL_GATHERS else None


class InBfloat16(Engine):
    """DeepSpeed's ``communication_data_type``, which caat does not offer."""

    def _settings(self, *arguments: Any) -> dict:
        return super()._settings(*arguments) | {"communication_data_type": "bf16"}


def replicas(config: BenchDataConfig) -> list[Replica]:
    """Return nothing sent, the peers, and each of ``config.codecs``. Collective."""
    return [
        _without_messages(config),
        plain_deepspeed(config),
        plain_deepspeed(config, f"{PLAIN}, bf16", InBfloat16),
        _ddp(config),
        *(_ours(config, codec) for codec in config.codecs),
    ]


def batches_of(config: ReplicaStepsConfig) -> Batches:
    """Return this replica's micro-batches of a step: random tokens, and for each the next as target."""
    c, generator = config.model, torch.Generator().manual_seed(SEED + dist.get_rank())
    size = (config.accumulation, config.micro_batch, c.sequence + 1)
    tokens = torch.randint(c.vocab_size, size, generator=generator)
    return [(each[:, :-1], each[:, 1:]) for each in tokens]


def model_of(config: ReplicaStepsConfig, mesh: Mesh) -> GPT:
    """Return the model with its initial weights, equal in all variants."""
    return GPT.empty(config.model, mesh, 1.0).fill(initial_weights(config.model, SEED))


def _ours(config: BenchDataConfig, codec: str) -> Replica:
    sync = config.data_sync(codec)
    replica = by_engine(config, codec, Mesh.create(1, 1, data_sync=sync, seed=SEED))
    replica.codec, replica.weights_codec = codec, sync.weights_codec
    return replica


def _without_messages(config: BenchDataConfig) -> Replica:
    mesh = Mesh.create(1, 1)
    zero = mesh.data.zero
    assert zero is not None
    mesh.data.zero = NothingSent(zero.gradients.exchange, zero.settings, lambda sent, purpose: None, SEED)
    return by_engine(config, NOTHING, mesh)


def plain_deepspeed(config: ReplicaStepsConfig, mode: str = PLAIN, kind: type[Engine] = Engine) -> Replica:
    """Return DeepSpeed with its own messages, by the backend's own collectives. Collective."""
    mesh = Mesh.create(1, 1)
    mesh.data.zero = None
    return by_engine(config, mode, mesh, kind)


def by_engine(
    config: ReplicaStepsConfig,
    mode: str,
    mesh: Mesh,
    kind: type[Engine] = Engine,
    *,
    islands: IslandsConfig | None = None,
    optim: OptimConfig = OPTIM,
) -> Replica:
    """Return a replica that is trained by our engine, or by a ``kind`` of it."""
    model, batches = model_of(config, mesh), batches_of(config)
    # An exchange after half of a turn is over, delay included, before the next variant's turn.
    steps = islands.every // 2 if islands else 0
    how = {"stage": 1, "precision": "fp32", "accumulation": config.accumulation}
    engine = kind(model, mesh, optim, **how, islands=islands, seed=SEED)  # type: ignore[arg-type]
    zero = mesh.data.zero
    coders = [zero.gradients.seconds, zero.weights.seconds] if zero else []

    def step() -> float:
        nonlocal steps
        mesh.data.start_step(steps)
        mesh.islands.ledger.reset()
        for seconds in coders:
            seconds.clear()
        loss = engine.step(batches, LR).loss
        replica.coded.append(1e3 * sum(s[phase] for s in coders for phase in ("encode", "decode")))
        steps += 1
        engine.outer_step(steps)
        return loss

    replica = Replica(mode, step, mesh.data.ledger, mesh.islands.ledger)
    if engine.live.islands is not None:
        replica.drain = engine.live.islands.wait
    return replica


def _ddp(config: BenchDataConfig) -> Replica:
    """Return torch's DistributedDataParallel with its PowerSGD hook: no ZeRO, so no gather of weights."""
    mesh, ledger = Mesh(1), Ledger()

    def count(name: str, arguments: tuple[Any, ...], sent: int) -> None:
        ledger.count(sent, "step", "gradients")

    ranks = list(range(dist.get_world_size()))
    group = new_counted_group(ranks, dist.new_group(ranks), count)
    model, batches = model_of(config, mesh), batches_of(config)
    mib = sum(p.nbytes for p in model.parameters()) // 2**20 + 1
    # One bucket: the hook starts a bucket's later messages from threads of gloo, so that those of several
    # buckets can start in another order on each rank, which fails.
    parallel = DistributedDataParallel(model, process_group=group, bucket_cap_mb=mib)
    # The first steps of PowerSGD are exact: DDP changes its buckets after the first.
    state = PowerSGDState(group, matrix_approximation_rank=DDP_RANK, start_powerSGD_iter=2)
    parallel.register_comm_hook(state, powerSGD_hook)
    optimizer = plain_optimizer(model)

    def step() -> float:
        ledger.reset()
        return plain_step(parallel, optimizer, batches, parallel.no_sync)

    return Replica(f"ddp, powersgd:{DDP_RANK}", step, ledger)


def plain_optimizer(model: GPT) -> AdamW:
    """Return the optimizer of a peer without our engine, at the learning rate of all variants."""
    optimizer = AdamW(model, OPTIM)
    for parameters in optimizer.param_groups:
        parameters["lr"] = LR
    return optimizer


def plain_step(
    model: nn.Module,
    optimizer: AdamW,
    batches: Batches,
    held: Callable[[], AbstractContextManager] = nullcontext,
) -> float:
    """Train ``model`` by a step without our engine; return the mean loss over all ranks. Collective.

    ``held`` surrounds all micro-batches except the last.
    """
    losses = []
    for number, (tokens, targets) in enumerate(batches, 1):
        with nullcontext() if number == len(batches) else held():
            loss = model(tokens, targets).mean()
            (loss / len(batches)).backward()
        losses.append(loss.detach())
    mean = torch.stack(losses).mean()
    dist.all_reduce(mean)
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(mean) / dist.get_world_size()
