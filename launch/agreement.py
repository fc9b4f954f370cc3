"""What a configuration and the checkpoint that it starts from have to agree in."""

from __future__ import annotations

from dataclasses import fields

from caat.training.checkpoint.architecture import Architecture
from conf.checks import require
from conf.model import ModelConfig
from conf.schema import Config

# Of a model, what is not in the function. The padding of the vocabulary is, where channels are private.
NOT_IN_THE_FUNCTION = ("name", "init_std", "padded_vocab_size", "sequence")


def check_model(config: Config, found: Architecture, where: object, remedy: str) -> None:
    """Raise ``ValueError`` unless the model is the one ``found`` in ``where``, apart from its shards."""
    for name in (field.name for field in fields(ModelConfig) if field.name not in NOT_IN_THE_FUNCTION):
        ours, theirs = getattr(config.model, name), getattr(found.model, name)
        require(
            ours == theirs,
            f"model.{name}={ours}, but {where} holds a model with {theirs}: give model.{name}={theirs}, or "
            f"{remedy}",
        )


def check_private(config: Config, found: Architecture, where: object) -> None:
    """Raise ``ValueError`` unless private channels would be those that ``found`` was trained with."""
    shards = config.parallel.tensor
    require(
        shards == found.shards,
        f"parallel.tensor={shards}, but {where} was trained with {found.shards} shards at "
        f"sync.ratio={found.ratio}: with private channels another number of shards is another model. Give "
        f"parallel.tensor={found.shards}, on any number of processes",
    )
    # Each slice of the vocabulary is read from the stream of its own shard.
    ours, theirs = config.model.padded_vocab(shards), found.model.padded_vocab(shards)
    require(
        ours == theirs or found.plain,
        f"the vocabulary is padded to {ours}, but {where} was trained with {theirs}, and with private "
        f"channels that is another function: give model.padded_vocab_size={theirs}",
    )
    scale = config.sync.scale(shards)
    require(
        scale == found.private_scale,
        f"sync.private_scale is {scale}, but {where} was trained with {found.private_scale}: give "
        f"sync.private_scale={found.private_scale}",
    )
