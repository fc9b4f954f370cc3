"""A training run of this rank: its objects, from the configuration or a checkpoint, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from caat.data.corpus import data_fingerprint
from caat.data.loader import Loader, validation_batches
from caat.data.shards import TokenShards
from caat.data.tokenizer import find_tokenizer, load_tokenizer
from caat.parallel.mesh import Mesh
from caat.parallel.wire import Wire
from caat.planning.costs import flops_per_token
from caat.runs.status import write_status
from caat.supervision.control import Control
from caat.supervision.replicas import DriftError, ReplicaGuard
from caat.supervision.signals import StoppedBySignal, StopRequest
from caat.supervision.watchdog import Watchdog, tick_in
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.reading import load_state, load_weights
from caat.training.checkpoint.saver import SaveError, Saver
from caat.training.checkpoint.state import State, read_state
from caat.training.checkpoint.tensors import FullTensors
from caat.training.engine import Engine
from caat.training.fragments import KINDS
from caat.training.loop import NonFiniteError, Output, Supervision, train
from caat.training.outlook import outlook, product_rate
from caat.training.progress import RunProgress
from caat.training.randomness import set_random_state
from caat.training.trackers import open_trackers
from caat.training.trackers.samples import Samples
from conf.schema import Config
from launch.command.errors import DRIFTED, NOT_FINITE, NOT_SAVED, STOPPED, USER_ERROR, only_warned
from launch.run.agreement import check_ranks
from launch.run.start import DamagedError, choose_checkpoint, choose_initial
from launch.run.summary import baselines, summarise
from layers.full_tensors import full_tensors
from layers.gpt import GPT
from layers.weights import initial_weights, parameter_count

# More than these teach a model its text by heart.
MANY_PASSES = 20
# Raised on all ranks at the same step; each says in its message what happened.
ENDINGS: dict[type[Exception], int] = {
    NonFiniteError: NOT_FINITE,
    DriftError: DRIFTED,
    SaveError: NOT_SAVED,
    StoppedBySignal: STOPPED,
    DamagedError: USER_ERROR,
}


def train_run(
    config: Config, folder: Path, tokens: Path, device: torch.device, request: StopRequest, watchdog: Watchdog
) -> None:
    """Train on ``tokens`` into the run ``folder``. Collective.

    Raises one of :data:`ENDINGS`, on all ranks at the same step, if training stops early; its status is
    written then as well. Raises ``ValueError`` on all ranks if they were not started alike.
    """
    c, control = config.train, Control()
    check_ranks(config, tokens, control)
    processes = config.parallel.tensor_processes(dist.get_world_size())
    mesh = Mesh.create(config.parallel.tensor, processes, Wire.of(config.sync))
    first = control.rank == 0

    source = choose_checkpoint(config, folder, control, watchdog)
    watchdog.beat("building the model")
    initial = None if source else choose_initial(config, control, watchdog)
    model = _build(config, mesh, device, source or initial, watchdog)
    tick_in(model, watchdog.tick)
    if c.compile:
        model.compile_cores()
    watchdog.beat("starting DeepSpeed")
    engine = Engine(model, mesh, config.optim, config.zero.stage, c.precision, c.accumulation(mesh.data_size))
    tensors = full_tensors(model)
    watchdog.beat("loading the optimizer state")
    if initial is not None and c.precision == "bf16":
        # DeepSpeed took the master weights from the model, where bfloat16 has rounded them.
        load_state(engine.fragments(), KINDS[:1], tensors, mesh.local_shards, initial, watchdog.tick)
    start = _restore(engine, tensors, source, watchdog) or State(
        0, 0, 0, c.sequence, config.seed, data_fingerprint(tokens), 0
    )

    training = TokenShards(tokens, "train")
    held_out = TokenShards(tokens, "validation")
    place = (mesh.data_rank, mesh.data_size)
    loader = Loader(
        training, c.sequence, c.micro_batch, c.global_batch, config.seed, *place, position=start.position
    )

    def validation():
        batches = validation_batches(held_out, c.sequence, c.micro_batch, c.eval_sequences, *place)
        return ((x.to(device), y.to(device), rows) for x, y, rows in batches)

    saver = Saver(
        folder / "checkpoints",
        tensors,
        lambda: Architecture(
            config.model,
            mesh.shards,
            model.ratio,
            model.shared_channels,
            model.private_scale,
            training.bos,
            training.eos,
        ),
        find_tokenizer(tokens),
        mesh,
        engine.fragments,
        config.checkpoint,
        watchdog.beat,
    )
    benchmarks = _benchmarks(config, engine, model, tokens, watchdog)
    # For the figures at the end, for which the text may no longer be there.
    base = baselines(tokens, c.sequence, c.eval_sequences)
    guard = ReplicaGuard(model, model.blocks[-1], mesh, control, c.check_replicas_every)

    work = flops_per_token(config.model, c.sequence) * c.global_batch * c.sequence / dist.get_world_size()
    # A step is as slow as its slowest rank; control knows whole numbers.
    step_seconds = control.maximum(round(1e6 * work / product_rate(device, c.precision)))[0] / 1e6

    output = None
    if first:
        output = Output(
            open_trackers(config, folder, (start.step, start.tokens)),
            Samples(find_tokenizer(tokens), _shown_samples(config)),
            RunProgress(c.steps, start.step, folder / "log.txt"),
        )
        output.progress.say(_opening(config, mesh, engine, device, len(training), folder))
        if source is not None:
            output.progress.say(f"resumed from {source} at step {start.step}, {start.tokens:,} tokens")
        if initial is not None:
            output.progress.say(f"starting with the weights of {initial}")
        write_status(folder, "running")
    summary: dict = {}
    # Empty: it ends in a way that the worker tells of, since another rank may know better why.
    status, why = "", ""
    try:
        supervision = Supervision(control, saver, request, watchdog, guard)
        if output:
            output.progress.say(outlook(step_seconds, c.steps - start.step))
        request.training = True
        record = train(config, engine, loader, validation, start, supervision, device, output, benchmarks)
        watchdog.rest()
        status = "finished"
        if output:
            with only_warned(f"the figures of {folder}, which is trained and saved,"):
                summary = summarise(config, mesh, record, base, folder)
    except StoppedBySignal as stop:
        status, why = "stopped", str(stop)
        raise
    except tuple(ENDINGS) as error:
        status, why = "failed", str(error)
        # What was being saved when the run had to end is good.
        saver.finish()
        raise
    finally:
        watchdog.rest()
        if output:
            if status:
                write_status(folder, status, why)
            output.progress.close()
            _close(output, config, summary, folder)


def _shown_samples(config: Config) -> int:
    """Nobody looks at them without a tracker."""
    c = config.tracker
    return c.samples if c.tensorboard or c.wandb != "none" else 0


def _close(output: Output, config: Config, summary: dict, folder: Path) -> None:
    """Give the trackers the last figures, and what they were asked to keep of a run that finished."""
    if config.tracker.artifacts and summary:
        from launch.report import write_report

        for tracker in output.trackers:
            tracker.keep("checkpoint", Path(summary["checkpoint"]))
        with only_warned("the report for the trackers"):
            write_report([str(folder)], str(folder / "report"))
            for tracker in output.trackers:
                tracker.keep("report", folder / "report")
    for tracker in output.trackers:
        tracker.close(summary)


def _build(config: Config, mesh: Mesh, device: torch.device, source: Path | None, watchdog: Watchdog) -> GPT:
    """The model with random initial weights, or those of the checkpoint ``source``."""
    ratio = config.sync.ratio_of(1)
    arguments = (config.sync.scale(mesh.shards), config.train.activation_checkpointing)
    model = GPT.empty(config.model, mesh, ratio, *arguments, device)
    if source is None:
        full = initial_weights(config.model, config.seed)

        def next_full(name: str, shape: tuple[int, ...]) -> Tensor:
            watchdog.tick()
            return full(name, shape)

        return model.fill(next_full)
    load_weights(model, full_tensors(model), mesh.local_shards, source, watchdog.tick)
    return model


def _benchmarks(
    config: Config, engine: Engine, model: GPT, tokens: Path, watchdog: Watchdog
) -> Callable[[int], dict[str, float]] | None:
    """What runs the benchmarks of ``eval.tasks`` after a step; none if they are not asked for."""
    if config.eval.every == 0:
        return None
    from eval.quality.in_training import run_benchmarks
    from eval.quality.tasks import find_tasks

    watchdog.beat("reading the tasks of lm-eval")
    tasks, tokenizer = find_tasks(config.eval.tasks), load_tokenizer(find_tokenizer(tokens))

    def run(step: int) -> dict[str, float]:
        def watch(done: int, total: int) -> None:
            watchdog.beat(f"evaluating after step {step}")

        return run_benchmarks(engine, model, tokenizer, tasks, config.eval.limit, watch, watchdog.tick)

    return run


def _restore(
    engine: Engine, tensors: Sequence[FullTensors], source: Path | None, watchdog: Watchdog
) -> State | None:
    """Optimizer and random state of the checkpoint; the weights are in the model already."""
    if source is None:
        return None
    state, _ = read_state(source)
    # In float32 the master weights are the model's; in bfloat16 the model's are rounded.
    kinds = KINDS if engine.precision == "bf16" else KINDS[1:]
    load_state(engine.fragments(), kinds, tensors, engine.mesh.local_shards, source, watchdog.tick)
    engine.adam_steps = state.adam_steps
    set_random_state(state.random)
    return state


def _opening(
    config: Config, mesh: Mesh, engine: Engine, device: torch.device, tokens: int, folder: Path
) -> str:
    """What runs, in a few lines."""
    c = config.train
    passes = c.steps * c.global_batch * c.sequence / tokens
    lines = [
        f"{config.model.name}: {parameter_count(config.model) / 1e6:.1f} M parameters, "
        f"{mesh.shards} shards on {mesh.processes} process{'es' if mesh.processes > 1 else ''}, "
        f"{mesh.data_size} replica{'s' if mesh.data_size > 1 else ''}, "
        f"sync.ratio {config.sync.describe_ratio()}, ZeRO {engine.stage}, {c.precision} on {device.type}",
        f"{c.steps} steps of {c.global_batch} sequences of {c.sequence} tokens from {tokens:,} tokens "
        f"({passes:,.2f} passes); run folder {folder}",
    ]
    if passes > MANY_PASSES:
        lines.append(
            f"note: the text is read {passes:,.0f} times over: data.path=... or data=fineweb_edu give more"
        )
    if engine.stage != config.zero.stage:
        lines.append(
            f"note: zero.stage={config.zero.stage} in bf16 is wrong in DeepSpeed under tensor parallelism "
            f"(its gradient norm misses ranks); stage {engine.stage} takes its place"
        )
    return "\n".join(lines)
