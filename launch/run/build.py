"""Builds the parts of a run on this rank from its configuration and, if it resumes, from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from caat.data.prepared import Prepared
from caat.data.shards import TokenShards
from caat.data.tokenizer import load_tokenizer
from caat.parallel.mesh import Mesh
from caat.parallel.sharding import FullTensors
from caat.parallel.sums import SumOptions
from caat.supervision.control import Control
from caat.supervision.replicas import ReplicaGuard
from caat.supervision.signals import StopRequest
from caat.supervision.watchdog import Watchdog, tick_in
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.reading import load_master_weights, load_optimizer, load_weights
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import State, read_state
from caat.training.engine import Engine
from caat.training.islands.joined import Party
from caat.training.loop import Supervision, Training
from caat.training.output import Output
from caat.training.profiling import Profiler
from caat.training.progress import RunProgress
from caat.training.randomness import set_random_state
from caat.training.trackers import open_trackers
from caat.training.trackers.samples import Samples
from conf.schema import Config
from launch.run.batches import held_out_batches, training_batches
from launch.run.checkpoint import choose_checkpoint, choose_initial
from launch.run.joining import data_seed, join, party_of
from launch.run.opening import introduce, rows_of
from launch.run.start import Start
from layers.full_tensors import full_tensors
from layers.gpt import GPT
from layers.weights import initial_weights


def build_run(
    config: Config,
    start: Start,
    folder: Path,
    *,
    device: torch.device,
    control: Control,
    request: StopRequest,
    watchdog: Watchdog,
) -> Training:
    """Build the run in ``folder``, ready for its next step. Collective.

    Raises :class:`~launch.run.checkpoint.DamagedError` on all ranks if no intact checkpoint can be used.
    """
    mesh = _mesh(config)
    source = choose_checkpoint(config, folder, control, watchdog)
    watchdog.beat("building the model")
    initial = None if source else choose_initial(config, control, watchdog)
    model = _model(config, mesh, device, source or initial, watchdog)
    more_ends = _more_ends(source or initial, start.tokens)
    party = party_of(config, start.tokens, folder, mesh=mesh, control=control, watchdog=watchdog)
    engine = _engine(config, model, mesh, party, watchdog)
    tensors = full_tensors(model)
    watchdog.beat("loading the optimizer state")
    if initial is not None:
        load_master_weights(engine.live, tensors, initial, watchdog.tick)
    restored, notes = _restore(engine, tensors, source, watchdog)
    order = data_seed(config, folder)
    state, changes = _as_now(restored or _first_state(config, start.text), config, order)
    place = {"position": state.position, "seed": order}
    run = Training(
        config=config,
        engine=engine,
        loader=training_batches(config, start.tokens, mesh, device, **place),
        validation=held_out_batches(config, start.tokens, "validation", mesh, device),
        test=None if start.tokens.untested else held_out_batches(config, start.tokens, "test", mesh, device),
        state=state,
        saver=_saver(
            config,
            folder,
            start.tokens,
            more_ends,
            model=model,
            tensors=tensors,
            engine=engine,
            watchdog=watchdog,
        ),
        supervision=Supervision(control, request, watchdog, _guard(config, engine, model, control)),
        device=device,
        benchmarks=_benchmarks(config, engine, model, start.tokens, watchdog, ends=more_ends),
    )
    came = join(engine.live.islands, config, control, watchdog)
    if control.rank == 0:
        run.output = _output(config, folder, start.tokens, state, device, source=source)
        about = [*rows_of(config, start.tokens), *notes, *changes]
        introduce(run, folder, start.tokens, source=source, initial=initial, notes=about)
        again = (f"checkpoint.after of {name} runs again" for name in run.saver.after.start_again())
        for note in (*came, *again):
            run.say(note)
    return run


def _mesh(config: Config) -> Mesh:
    return Mesh.create(
        config.parallel.tensor,
        config.parallel.tensor_processes(dist.get_world_size()),
        SumOptions.of(config.sync),
        islands=config.parallel.islands,
        data_sync=config.data_sync,
        island_route=config.islands.route,
        seed=config.seed,
    )


def _engine(config: Config, model: GPT, mesh: Mesh, party: Party | None, watchdog: Watchdog) -> Engine:
    tick_in(model, watchdog.tick)
    if config.train.compile:
        model.compile_cores()
    watchdog.beat("starting DeepSpeed")
    return Engine(
        model,
        mesh,
        config.optim,
        stage=config.zero.stage,
        precision=config.train.precision,
        accumulation=config.train.accumulation(mesh.replicas),
        islands=config.islands,
        party=party,
        seed=config.seed,
    )


def _model(config: Config, mesh: Mesh, device: torch.device, source: Path | None, watchdog: Watchdog) -> GPT:
    """Return the model with random initial weights, or with those of the checkpoint ``source``."""
    ratio = config.sync.ratio_of(1)
    arguments = (config.sync.scale(mesh.shards), config.train.activation_checkpointing)
    model = GPT.empty(config.model, mesh, ratio, *arguments, device=device)
    if source is None:
        full = initial_weights(config.model, config.seed)

        def next_full(name: str, shape: tuple[int, ...]) -> Tensor:
            watchdog.tick()
            return full(name, shape)

        return model.fill(next_full)
    load_weights(model, full_tensors(model), mesh.local_shards, source, watchdog.tick)
    return model


def _restore(
    engine: Engine, tensors: Sequence[FullTensors], source: Path | None, watchdog: Watchdog
) -> tuple[State | None, list[str]]:
    """Restore optimizer and random state from ``source``; the model already has its weights.

    Returns the state of the run, and notes on what could not be restored.
    """
    if source is None:
        return None, []
    state, _ = read_state(source)
    load_master_weights(engine.live, tensors, source, watchdog.tick)
    notes = load_optimizer(engine.live, tensors, source, watchdog.tick, step=state.step)
    set_random_state(state.random)
    return state, notes


def _as_now(state: State, config: Config, order: int) -> tuple[State, list[str]]:
    """Return ``state`` with how this run reads the data, in the ``order`` of this seed; and what changes."""
    notes, documents = [], config.train.documents
    if state.documents != documents:
        notes.append(f"train.documents={documents} from here on; it was {state.documents} before")
    if state.order not in (None, order):
        notes.append(
            "the data is read in another order from here on, because this island has another islands.name "
            "(by default that of the run folder) or joins no others: sequences may repeat in this epoch"
        )
    return replace(state, documents=documents, order=order), notes


def _first_state(config: Config, text: str) -> State:
    """Return the state of a run of ``config`` before its first step; ``text`` is the hash of its data."""
    c = config.train
    return State(
        step=0,
        tokens=0,
        position=0,
        sequence=c.sequence,
        seed=config.seed,
        data=text,
        documents=c.documents,
    )


def _guard(config: Config, engine: Engine, model: GPT, control: Control) -> ReplicaGuard:
    islands, every = engine.live.islands, config.train.check_replicas_every
    # With a codec of weights, the replicas of an island hold approximations that depend on its past.
    exact = config.data_sync.weights_codec == "none"

    def equal_after(step: int) -> bool:
        return islands is None or (exact and islands.together)

    return ReplicaGuard(model, model.blocks[-1], engine.mesh, control, every, equal_after=equal_after)


def _saver(
    config: Config,
    folder: Path,
    tokens: Prepared,
    more_ends: tuple[int, ...],
    *,
    model: GPT,
    tensors: Sequence[FullTensors],
    engine: Engine,
    watchdog: Watchdog,
) -> Saver:
    shards = _first_shards(tokens)

    def architecture() -> Architecture:
        return Architecture(
            config.model,
            engine.mesh.shards,
            model.ratio,
            model.shared_channels,
            model.private_scale,
            shards.bos,
            shards.eos,
            more_ends,
        )

    return Saver(
        folder / "checkpoints",
        tensors,
        architecture,
        tokens.tokenizer,
        live=engine.live,
        settings=config.checkpoint,
        beat=watchdog.beat,
        tick=watchdog.tick,
    )


def _first_shards(tokens: Prepared) -> TokenShards:
    return next(iter(tokens.open("train").values()))


def _more_ends(folder: Path | None, tokens: Prepared) -> tuple[int, ...]:
    """Return the tokens that end a text of the model in ``folder``, besides the one that ends a document."""
    if folder is None:
        return ()
    return tuple(end for end in read_architecture(folder).ends if end != _first_shards(tokens).eos)


def _benchmarks(
    config: Config, engine: Engine, model: GPT, tokens: Prepared, watchdog: Watchdog, *, ends: Sequence[int]
) -> Callable[[int], dict[str, float]] | None:
    """Return a function that runs the benchmarks of ``eval.tasks`` after a step; None if there are none."""
    if config.eval.every == 0:
        return None
    from eval.quality.in_training import run_benchmarks
    from eval.quality.tasks import find_tasks

    watchdog.beat("reading the tasks of lm-eval")
    tasks, tokenizer = find_tasks(config.eval.tasks), load_tokenizer(tokens.tokenizer)

    def run(step: int) -> dict[str, float]:
        watchdog.beat(f"evaluating after step {step}")
        # Replicas share the rows, and one may have more batches than another: they do not count as beats.
        watched = {"watch": watchdog.tick, "tick": watchdog.tick}
        return run_benchmarks(engine, model, tokenizer, tasks, config.eval.limit, ends=ends, **watched)

    return run


def _output(
    config: Config,
    folder: Path,
    tokens: Prepared,
    state: State,
    device: torch.device,
    *,
    source: Path | None,
) -> Output:
    """Open the output of a run that goes on from the checkpoint ``source``, which may be that of another."""
    first = source is None or source.parent.resolve() != (folder / "checkpoints").resolve()
    tracker = config.tracker
    progress = RunProgress(config.train.steps, state.step, folder / "log.txt")
    # Only trackers show samples.
    shown = tracker.samples if tracker.tensorboard or tracker.wandb != "none" else 0
    return Output(
        open_trackers(config, folder, (state.step, state.tokens), first=first),
        Samples(tokens.tokenizer, shown),
        progress,
        Profiler(config.train.profile or {}, folder / "profile", device, progress.say),
    )
