"""A new run from given weights: what it takes over from their checkpoint, and what has to agree."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from caat.data.tokenizer import find_tokenizer
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.folder import find
from conf.checks import require
from conf.model import ModelConfig
from conf.partition import default_scale
from conf.schema import Config
from launch.resume import NOT_IN_THE_FUNCTION, check_padding


def initial_checkpoint(path: str) -> Path:
    """The checkpoint that ``initialize=path`` means; raises ``ValueError`` if there is none."""
    require(
        Path(path).expanduser().is_dir(),
        f"initialize={path} is not a folder: give a run, a checkpoint, or what `caat convert` made",
    )
    return find(path)


def adopt(config: DictConfig, given: Collection[str]) -> None:
    """Take what is not ``given`` of the model, and the tokenizer, from the checkpoint of ``initialize``.

    ``given`` names settings and groups on the command line: the group ``model`` stands for all of a model.
    """
    if config.initialize is None:
        return
    checkpoint = initial_checkpoint(config.initialize)
    found = read_architecture(checkpoint)
    if "model" not in given:
        values = {field.name: getattr(found.model, field.name) for field in fields(ModelConfig)}
        values["name"] = Path(config.initialize).expanduser().resolve().name
        if config.parallel.tensor != found.shards:
            values["padded_vocab_size"] = None
        for name, value in values.items():
            if f"model.{name}" not in given:
                config.model[name] = value
    if config.data.tokenizer is None:
        config.data.tokenizer = str(find_tokenizer(checkpoint))


def check_initial(config: Config, tokens: Path | None = None) -> None:
    """Raise ``ValueError`` unless the run can start from ``initialize``; with ``tokens``, if prepared."""
    if config.initialize is None:
        return
    checkpoint = initial_checkpoint(config.initialize)
    found = read_architecture(checkpoint)
    for name in (field.name for field in fields(ModelConfig) if field.name not in NOT_IN_THE_FUNCTION):
        ours, theirs = getattr(config.model, name), getattr(found.model, name)
        require(
            ours == theirs,
            f"model.{name}={ours}, but initialize={config.initialize} holds a model with {theirs}: leave the "
            f"model out and it is taken over, or give model.{name}={theirs}",
        )
    shards = config.parallel.tensor
    if not found.plain:
        require(
            shards == found.shards,
            f"parallel.tensor={shards}, but initialize={config.initialize} was trained with {found.shards} "
            f"shards at sync.ratio={found.ratio}: with private channels another number of shards is another "
            f"model. Give parallel.tensor={found.shards}, on any number of processes",
        )
        check_padding(config, found, f"initialize={config.initialize}")
        scale = config.sync.private_scale or default_scale(shards)
        require(
            scale == found.private_scale,
            f"sync.private_scale is {scale}, but initialize={config.initialize} was trained with "
            f"{found.private_scale}: give sync.private_scale={found.private_scale}",
        )
    theirs = find_tokenizer(checkpoint)
    ours = find_tokenizer(tokens) if tokens else Path(config.data.tokenizer or theirs).expanduser()
    require(
        ours.read_bytes() == theirs.read_bytes(),
        f"{ours} is another tokenizer than {theirs}, whose pieces the weights know: leave data.tokenizer "
        "out, or give text that is not prepared yet",
    )
