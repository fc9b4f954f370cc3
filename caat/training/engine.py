"""DeepSpeed ZeRO on our mesh: optimizer steps with the same decisions on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from caat.data.loader import HeldOut
from caat.data.marks import IGNORED
from caat.optim.make import make_optimizer
from caat.parallel.mesh import Mesh
from caat.parallel.sharding import sharded_parameters
from caat.planning.zero import BUCKET
from caat.training.islands.joined import JoinedIslands, Party
from caat.training.islands.outer_steps import Islands, OuterStep
from caat.training.live import LiveState
from caat.training.padding import padding_of
from caat.training.partitions import message_shapes, optimizer_calls, refresh_weights, zero_owners
from caat.training.zero import Mpu, import_deepspeed
from conf.islands import IslandsConfig
from conf.optim import OptimConfig
from conf.zero import ZeroConfig

# (tokens, targets, losses), each [rows, sequence].
See = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class StepResult:
    loss: float
    # Global L2 norm over all parameters, before clipping; inf or nan if a gradient was not finite.
    grad_norm: float
    # True: loss or gradient was not finite, and weights and optimizer state are unchanged.
    skipped: bool


class Engine:
    """Owns the model's gradients, optimizer state and (at stage 3) its weights.

    ``model(tokens, targets)`` must return the loss of every token, and take as further arguments what else a
    batch holds. ``model.set_ratio`` must set the fraction of synchronised channels. ``stage`` is that of
    DeepSpeed's ZeRO. Stage 0 in bfloat16 is wrong in DeepSpeed 0.19 under tensor parallelism (its norm
    ignores all ranks but the first): stage 1 is used instead, and :attr:`stage` is 1. ``optimizer`` must be
    built for ``model``; the default follows ``optim``. ``islands``: the settings of outer steps; ``model``
    must have ``blocks`` then. ``party``: how this island meets others that are runs of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        optim: OptimConfig,
        *,
        stage: int,
        precision: str,
        accumulation: int,
        islands: IslandsConfig | None = None,
        party: Party | None = None,
        seed: int = 0,
    ) -> None:
        deepspeed = import_deepspeed()
        self.mesh, self.model, self.clip, self.precision = mesh, model, optim.clip, precision
        self.stage = ZeroConfig(stage).trained(precision)
        for _, parameter, _ in sharded_parameters(model):
            # DeepSpeed counts unmarked parameters on tensor rank 0 only: without this mark the global norm
            # would silently miss most of the model.
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        method = islands.resolved(mesh.islands.processes) if islands is not None else "none"
        self._optimizer = make_optimizer(model, optim, mesh, islands, seed=seed)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=self._optimizer,
            mpu=Mpu(mesh),
            dist_init_required=False,
            config=self._settings(precision, accumulation, model),
        )
        zero = mesh.data.zero
        # In bf16, stage 1 uses another optimizer of DeepSpeed, whose norm needs all gradients on every rank.
        if zero and self.stage in (1, 2) and hasattr(self._engine.optimizer, "ipg_buckets"):
            zero.owners = zero_owners(self._engine.optimizer, mesh.data_size)
        if zero:
            zero.shapes = message_shapes(self._engine.optimizer, model, self.stage)
        # At stage 0 the engine itself needs equal gradients, for their norm.
        self._disagree = bool(zero and not zero.gradients.exact and mesh.processes > 1)
        if self._disagree and self.stage > 0:
            self._optimizer.agree = self._make_equal
        self.live = LiveState(
            model,
            self._engine.optimizer,
            self._optimizer,
            mesh,
            stage=self.stage,
            # DeepSpeed copied the master weights from the model, where they are rounded to bfloat16.
            rounded=precision == "bf16",
        )
        self._optimizer.places = self.live.places()
        self._optimizer.padding = padding_of(model, self._optimizer.places)
        if method in ("slamb", "dcs3gd"):
            self._optimizer.calls = optimizer_calls(self._engine.optimizer, self.stage)
        if islands is not None and method != "none":
            self.live.islands = self._islands(islands, party, seed)
            if method == "dcs3gd":
                outer_steps, gradients = self.live.islands, self.live.gradients
                self._optimizer.compensate = lambda: outer_steps.compensate(gradients())

    def _islands(self, settings: IslandsConfig, party: Party | None, seed: int) -> Islands:
        blocks = len(self.model.blocks)  # type: ignore[arg-type]
        kind = partial(JoinedIslands, party=party) if party else Islands
        return kind(
            self.live.master_weights(),
            {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self.model.named_parameters()},
            self.mesh,
            settings,
            sharded={name for name, p in self.model.named_parameters() if _is_sharded(p)},
            padding=self._optimizer.padding,
            fragment_of=lambda name: settings.fragment_of(block_of(name), blocks),
            refresh=lambda: refresh_weights(self._engine.optimizer, self.stage),
            alone=self.stage == 0,
            seed=seed,
        )

    def _settings(self, precision: str, accumulation: int, model: nn.Module) -> dict:
        numbers = sum(p.numel() for p in model.parameters())
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed uses it only for reports
            "gradient_accumulation_steps": accumulation,
            # At stage 0 DeepSpeed does not report the norm by which it clips, so we clip ourselves.
            "gradient_clipping": self.clip if self.stage > 0 else 0.0,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**12,
            # The timer would synchronise with the GPU twice per micro-batch.
            "timers": {"throughput": {"enabled": False}},
            "zero_optimization": {
                "stage": self.stage,
                # Some buffers have this size even if the model is smaller.
                "reduce_bucket_size": min(BUCKET, numbers),
                "allgather_bucket_size": min(BUCKET, numbers),
                # Stages 1 and 2: one reduce for each owner, unless the all-reduce is replaced anyway.
                "use_multi_rank_bucket_allreduce": self.mesh.data.zero is None or self.mesh.data.zero.reduces,
            },
        }
        if precision == "bf16":
            # Each gradient is added to the float32 sum as soon as it is computed: 18 instead of 26 bytes per
            # number and micro-batch, and bfloat16 gradients are never all in memory at once.
            settings["bf16"] = {"enabled": True, "immediate_grad_update": True}
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
        return settings

    def step(
        self, batches: Sequence[tuple[Tensor, ...]], lr: float, counted: int | None = None
    ) -> StepResult:
        """Take an optimizer step on this rank's micro-batches, which hold the arguments of ``model``.

        ``counted`` is the number of targets that count in the global batch, over all replicas and islands;
        None: all. The loss is the mean over them.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        losses: list[Tensor] = []
        # The mean over all micro-batches, which follows, divides by their number.
        share = len(batches) * self.mesh.replicas / max(counted or 0, 1)
        for batch in batches:
            with self.mesh.data.during("forward"):
                by_token = self._engine(*batch)
                loss = by_token.mean() if counted is None else by_token.sum() * share
            with self.mesh.data.during("backward"):
                self._engine.backward(loss)
            losses.append(loss.detach())
            if len(losses) < len(batches):
                self._engine.step()
        loss = self._island_mean(torch.stack(losses).mean())
        if self.stage == 0 and self._disagree:
            self._make_equal(self._gradients(sharded=False))
        grad_norm = self._norm_and_clip() if self.stage == 0 else None
        self._optimizer.skip = not isfinite(loss) or not isfinite(grad_norm or 0.0)
        self._engine.step()
        self._optimizer.end_step()
        if self._optimizer.calls > 1:
            # DeepSpeed gathered weights before the update that waited for the last call.
            refresh_weights(self._engine.optimizer, self.stage)
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        skipped = self._optimizer.skip or not isfinite(grad_norm)
        if skipped and self.mesh.data.zero:
            self.mesh.data.zero.gradients.forget()
        return self._over_islands(loss, grad_norm, skipped)

    def outer_step(self, step: int, *, last: bool = False) -> OuterStep | None:
        """Exchange changes between islands as far as it is due after ``step``; None if there are no islands.

        Collective.
        """
        return self.live.islands.step(step, last=last) if self.live.islands else None

    @torch.no_grad()
    def evaluate(self, batches: Iterable[HeldOut], see: See | None = None) -> float:
        """Return the mean loss of the targets that count, in the leading rows that count, over all replicas.

        Every rank must have the same number of batches. ``see`` is called with the rows that count and their
        losses. With islands, the model is the anchor.
        """
        total, count = torch.zeros((), dtype=torch.float64), 0
        with self.evaluating() as forward:
            for *batch, rows in batches:
                losses = forward(*batch)[:rows]
                if see is not None:
                    see(batch[0][:rows], batch[1][:rows], losses)
                total += losses.double().sum().cpu()
                count += int((batch[1][:rows] != IGNORED).sum())
        both = torch.tensor([total, count], dtype=torch.float64, device=self._engine.device)
        for axis in (self.mesh.data, self.mesh.islands):
            axis.all_reduce(both, "forward", "loss")
        return float(both[0] / both[1])

    @contextmanager
    def evaluating(self) -> Iterator[Callable[..., Tensor]]:
        """Yield the model in evaluation mode, to be called like ``model(...)``; with islands, the anchor.

        At stage 3 each call gathers weights from all replicas, so every rank must make the same number of
        calls.
        """
        self._engine.eval()
        try:
            with self._at_anchor(), self.mesh.data.during("forward"):
                yield self._engine
        finally:
            self._engine.train()

    @contextmanager
    def _at_anchor(self) -> Iterator[None]:
        if self.live.islands is None or self.live.islands.together:
            yield
            return
        with self.live.data_sync.exact_weights(), self.live.islands.at_anchor():
            yield

    def set_ratio(self, ratio: float) -> None:
        """Synchronise this fraction of the channels from the next step or evaluation on."""
        self.model.set_ratio(ratio)  # type: ignore[operator]

    def _island_mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over the replicas of this island."""
        value = value.double()
        self.mesh.data.all_reduce(value, "forward", "loss")
        return float(value) / self.mesh.data_size

    def _over_islands(self, loss: float, grad_norm: float, skipped: bool) -> StepResult:
        """Return the means over the islands; a step counts as skipped if any island skipped it."""
        values = torch.tensor([loss, grad_norm, skipped], dtype=torch.float64, device=self._engine.device)
        self.mesh.islands.all_reduce(values, "step", "loss")
        loss, grad_norm, skips = (values / self.mesh.islands.processes).tolist()
        return StepResult(loss, grad_norm, skips > 0)

    def _gradients(self, *, sharded: bool) -> list[Tensor]:
        """Return the gradients of the model's sharded weights, or of the others."""
        parameters = [p for p in self.model.parameters() if _is_sharded(p) == sharded]
        return [p.grad for p in parameters if p.grad is not None]

    @torch.no_grad()
    def _make_equal(self, gradients: Sequence[Tensor]) -> None:
        """Give all tensor-parallel processes the first one's gradients of replicated weights.

        A codec rounds a number by its neighbours in a message, which differ between processes. DeepSpeed's
        norm counts the gradients of the first process, too.
        """
        if not gradients:
            return
        message = torch.cat([gradient.flatten() for gradient in gradients])
        if self.mesh.tensor_rank > 0:
            message.zero_()
        self.mesh.tensor.all_reduce(message, "backward", "replicated")
        for gradient, part in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _norm_and_clip(self) -> float:
        sharded, replicated = self._gradients(sharded=True), self._gradients(sharded=False)
        square = _square_sum(sharded)
        self.mesh.tensor.all_reduce(square, "backward", "norm")
        norm = float((square + _square_sum(replicated)).sqrt())
        if isfinite(norm) and 0 < self.clip < norm:
            # The same epsilon as in DeepSpeed and torch, so that every stage takes the same step.
            torch._foreach_mul_(sharded + replicated, self.clip / (norm + 1e-6))
        return norm


def block_of(name: str) -> int | None:
    """Return the block of a parameter; 0 for the embedding, None for the final norm and head."""
    first, number, *_ = (*name.split("."), "")
    if first == "blocks":
        return int(number)
    return 0 if first == "embedding" else None


def _is_sharded(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "tensor_model_parallel", False)


def _square_sum(tensors: Sequence[Tensor]) -> Tensor:
    norms = torch._foreach_norm(list(tensors))
    return torch.stack(norms).double().square().sum()
