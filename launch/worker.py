"""One process of a training run: from a configuration to a trained model in its run folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from caat.data.corpus import prepare
from caat.data.loader import Loader, validation_batches
from caat.data.shards import TokenShards
from caat.parallel.mesh import Mesh
from caat.parallel.wire import Wire
from caat.training import checkpoint
from caat.training.device import choose_device, start_process_group, stop_process_group
from caat.training.engine import Engine
from caat.training.loop import NonFiniteError, Output, train
from caat.training.progress import RunProgress
from caat.training.trackers import open_trackers
from conf.schema import Config
from launch.config import check_data
from launch.run_folder import create_run_folder
from launch.summary import summarise
from layers.gpt import GPT
from layers.weights import initial_weights, parameter_count


def work(config: Config, folder: Path | None) -> None:
    """Train as this rank of the world (or as a world of one); every rank of a run calls it alike.

    ``folder`` is the run folder; ``None``: the first rank makes it. Raises ``ValueError`` for what the user
    can mend, before the process group starts. Exits with status 3 if training stopped for a loss or
    gradient that is not finite.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    config.check_layout(world)
    device = choose_device(
        config.launch.device, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    )
    _set_determinism(config)
    tokens = prepare(config.data)
    check_data(config, tokens)

    start_process_group(device)
    status = 0
    try:
        _train(config, _agree_on(folder, config), tokens, device)
    except NonFiniteError as error:
        if dist.get_rank() == 0:
            print(f"caat: error: {error}", file=sys.stderr)
        status = 3
    # All ranks come here or none does: after any other error the others may still be in a collective.
    stop_process_group()
    if status:
        sys.exit(status)


def _train(config: Config, folder: Path, tokens: Path, device: torch.device) -> None:
    c = config.train
    processes = config.parallel.tensor_processes(dist.get_world_size())
    mesh = Mesh.create(config.parallel.tensor, processes, Wire.of(config.sync))
    first = dist.get_rank() == 0

    model = GPT.build(
        config.model,
        mesh,
        config.sync.ratio,
        initial_weights(config.model, config.seed),
        config.sync.private_scale,
        c.activation_checkpointing,
        device,
    )
    accumulation = c.accumulation(mesh.data_size)
    engine = Engine(model, mesh, config.optim, config.zero.stage, c.precision, accumulation)

    training = TokenShards(tokens, "train")
    held_out = TokenShards(tokens, "validation")
    place = (mesh.data_rank, mesh.data_size)
    loader = Loader(training, c.sequence, c.micro_batch, c.global_batch, config.seed, *place)

    def validation():
        batches = validation_batches(held_out, c.sequence, c.micro_batch, c.eval_sequences, *place)
        return ((x.to(device), y.to(device), rows) for x, y, rows in batches)

    architecture = checkpoint.Architecture(
        config.model, mesh.shards, config.sync.ratio, model.shared_channels, model.private_scale
    )

    def save(step: int) -> None:
        state = {
            "step": step,
            "tokens": step * c.global_batch * c.sequence,
            "position": loader.position,
            "seed": config.seed,
        }
        checkpoint.save(
            folder / "checkpoints",
            model.full_weights(engine.local_weight),
            architecture,
            tokens / "tokenizer.model",
            state,
            first,
        )

    output = None
    if first:
        settings = dataclasses.asdict(config)
        output = Output(
            open_trackers(config.tracker, folder, settings), RunProgress(c.steps, 0, folder / "log.txt")
        )
        output.progress.say(_opening(config, mesh, engine, device, len(training), folder))
    summary: dict = {}
    try:
        record = train(config, engine, loader, validation, save, device, output)
        if output:
            summary = summarise(config, mesh, record, tokens, folder)
    finally:
        if output:
            output.progress.close()
            for tracker in output.trackers:
                tracker.close(summary)


def _opening(
    config: Config, mesh: Mesh, engine: Engine, device: torch.device, tokens: int, folder: Path
) -> str:
    """What runs, in three lines."""
    c = config.train
    lines = [
        f"{config.model.name}: {parameter_count(config.model) / 1e6:.1f} M parameters, "
        f"{mesh.shards} shards on {mesh.processes} process{'es' if mesh.processes > 1 else ''}, "
        f"{mesh.data_size} replica{'s' if mesh.data_size > 1 else ''}, sync.ratio {config.sync.ratio}, "
        f"ZeRO {engine.stage}, {c.precision} on {device.type}",
        f"{c.steps} steps of {c.global_batch} sequences of {c.sequence} tokens from {tokens:,} tokens; "
        f"run folder {folder}",
    ]
    if engine.stage != config.zero.stage:
        lines.append(
            f"note: zero.stage={config.zero.stage} in bf16 is wrong in DeepSpeed under tensor parallelism "
            f"(its gradient norm misses ranks); stage {engine.stage} takes its place"
        )
    return "\n".join(lines)


def _agree_on(folder: Path | None, config: Config) -> Path:
    """The first rank makes the run folder if there is none yet; all ranks learn its name."""
    names = [None if folder is None else str(folder)]
    if folder is None and dist.get_rank() == 0:
        names = [str(create_run_folder(config))]
    dist.broadcast_object_list(names, src=0)
    assert names[0] is not None
    return Path(names[0])


def _set_determinism(config: Config) -> None:
    torch.manual_seed(config.seed)
    if config.train.deterministic:
        # cuBLAS needs it set before its first use to be repeatable.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
