"""What a run prints before its first step: the model, its layout, and what it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caat.data.prepared import Prepared
from caat.data.shards import cut_rows, read_index
from caat.parallel.mesh import Mesh
from caat.training.loop import Training
from conf.data_sync import DataSyncConfig
from conf.partition import shared_channels
from conf.schema import Config
from layers.weights import parameter_count

# With more passes than this, a model memorises its text.
MANY_PASSES = 20
# Numbers of bf16 in the 16 bytes that tensor cores read at once.
EVEN = 8


def introduce(
    run: Training,
    folder: Path,
    tokens: Prepared,
    *,
    source: Path | None,
    initial: Path | None,
    notes: Sequence[str],
) -> None:
    """Print what runs and what it starts from."""
    run.say(_opening(run, folder, tokens))
    if source is not None:
        run.say(f"resumed from {source} at step {run.state.step}, {run.state.tokens:,} tokens")
    for note in notes:
        run.say(f"note: {note}")
    if initial is not None:
        run.say(f"starting with the weights of {initial}")


def _parts(mesh: Mesh) -> str:
    replicas, islands = mesh.data_size, mesh.islands.processes
    text = f"{replicas} replica{'s' if replicas > 1 else ''}"
    return f"{text} on each of {islands} islands" if islands > 1 else text


def _opening(run: Training, folder: Path, text: Prepared) -> str:
    """Describe the run in a few lines."""
    config, engine, mesh, c = run.config, run.engine, run.engine.mesh, run.config.train
    sizes = {name: len(shards) for name, shards in text.open("train").items()}
    tokens = sum(sizes.values())
    passes = text.epochs(c.sequence, c.steps * c.global_batch)
    whole = "" if text.mixed else f" ({passes['']:,.2f} passes)"
    lines = [
        f"{config.model.name}: {parameter_count(config.model) / 1e6:.1f} M parameters, "
        f"{mesh.shards} shards on {mesh.processes} process{'es' if mesh.processes > 1 else ''}, "
        f"{_parts(mesh)}, "
        f"sync.ratio {config.sync.describe_ratio()}, ZeRO {engine.stage}, {c.precision} on {run.device.type}",
        f"{c.steps} steps of {c.global_batch} sequences of {c.sequence} tokens from {tokens:,} "
        f"tokens{whole}; run folder {folder}",
    ]
    if text.mixed:
        lines.append(
            "mixture: "
            + ", ".join(
                f"{float(share):.4g} {name} ({passes[name]:,.2f} passes over {sizes[name]:,} tokens)"
                for name, share in text.shares.items()
            )
        )
    for name, times in passes.items():
        if times > MANY_PASSES:
            lines.append(
                f"note: the run reads {name or 'the text'} {times:,.0f} times: "
                + (
                    f"a smaller weight in data.mixture or more text for {name} changes that"
                    if name
                    else "data.path=... or data=fineweb_edu gives more"
                )
            )
    if 0 < len(untested := text.untested) < len(text.folders):
        lines.append(f"note: no test loss is computed, because {', '.join(untested)} has no test split")
    if run.device.type == "cuda":
        lines += [f"note: {slow}" for slow in uneven_channels(config)]
    if mesh.data_size == 1 and config.data_sync != DataSyncConfig():
        where = "an island" if mesh.islands.processes > 1 else "the run"
        lines.append(f"note: data_sync has no effect, because {where} has one replica")
    if mesh.data_size > 1 and config.data_sync.describe():
        lines.append(f"between replicas: {config.data_sync.describe()}")
    if engine.live.islands is not None:
        lines.append(f"outer steps: {config.islands.describe(mesh.islands.processes)}")
    if config.islands.method == "dcs3gd" and config.optim.name != "sgd":
        lines.append(
            f"note: islands.method=dcs3gd with optim.name={config.optim.name} is only inspired by DC-S3GD, "
            "whose authors use SGD with momentum"
        )
    if engine.stage != config.zero.stage:
        lines.append(
            f"note: in bf16, zero.stage={config.zero.stage} runs as stage {engine.stage}, because otherwise "
            "DeepSpeed's gradient norm misses tensor-parallel ranks"
        )
    return "\n".join(lines)


def rows_of(config: Config, tokens: Prepared) -> list[str]:
    """Return what is to be known of prepared rows of which only a part counts in the loss."""
    lines, sequence = [], config.train.sequence
    for name, shards in tokens.open("train").items():
        if shards.marked:
            of = f"of {name} " if name else ""
            index = read_index(shards.folder)
            rows, cut = cut_rows(shards, sequence)
            lines.append(
                f"the loss {of}is that of {index.counted['train']:,} of {len(shards):,} training tokens "
                f"(data.format={index.rows}); {cut:,} of {rows:,} rows are cut where "
                "a sequence ends, fewer with a longer train.sequence"
            )
    if lines and config.train.documents == "packed":
        lines.append("rows attend to the rows before them: train.documents=masked keeps them apart")
    return lines


def uneven_channels(config: Config) -> list[str]:
    """Return a line for each ratio whose products have a dimension that tensor cores do not like.

    They read rows of 16 bytes, so the number of shared channels should be a multiple of 8 in bf16.
    """
    hidden, shards = config.model.hidden, config.parallel.tensor
    lines = []
    for ratio in dict.fromkeys(config.sync.schedule.values()):
        channels = shared_channels(hidden, ratio, shards)
        if channels % EVEN:
            even = round(channels / EVEN) * EVEN
            lines.append(
                f"sync.ratio={ratio:g} shares {channels} of {hidden} channels, no multiple of {EVEN}: "
                f"GPUs multiply such matrices slowly; sync.ratio={even / hidden} shares {even}"
            )
    return lines
