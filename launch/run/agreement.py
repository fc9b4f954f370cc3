"""Checks that a configuration matches the checkpoint it starts from, and that ranks match each other."""

from __future__ import annotations

from hashlib import sha256
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from caat.training.checkpoint.architecture import Architecture
from conf.checks import require
from conf.model import ModelConfig
from conf.reading.explain import SETTINGS
from conf.schema import Config

if TYPE_CHECKING:
    from caat.supervision.control import Control

# Fields that do not affect the model's output. With private channels, the padded vocabulary size does.
NOT_IN_THE_FUNCTION = ("name", "init_std", "padded_vocab_size")
# Prefixes of settings that may differ between hosts: paths, and what only rank 0 uses.
OF_A_HOST = ("run.", "launch.", "data.", "tracker.", "resume", "initialize", "eval.tasks")


def of_the_function(model: ModelConfig, scaling: bool = True) -> list[str]:
    """Return the names of the settings, below `model`, that the model's output depends on.

    ``scaling``: also those of scaled rotary positions.
    """
    names = [name.removeprefix("model.") for name in SETTINGS if name.startswith("model.")]
    names = [name for name in names if scaling or not name.startswith("rope_scaling.")]
    # Dynamic scaling begins at this length.
    free = () if scaling and model.rope_scaling.kind == "dynamic" else ("sequence",)
    return [name for name in names if name not in (*NOT_IN_THE_FUNCTION, *free)]


def value_of(model: ModelConfig, name: str) -> Any:
    """Return a setting below `model`, with the value that a default stands for."""
    return model.head_size if name == "head_dim" else attrgetter(name)(model)


def check_model(
    config: Config, found: Architecture, where: object, remedy: str, *, scaling: bool = True
) -> None:
    """Raise ``ValueError`` unless the model matches ``found`` in ``where``; the shard count may differ.

    ``scaling``: compare scaled rotary positions, too.
    """
    for name in of_the_function(config.model, scaling):
        ours, theirs = value_of(config.model, name), value_of(found.model, name)
        require(
            ours == theirs,
            f"model.{name}={ours}, but {where} holds a model with {theirs}: give model.{name}={theirs}, or "
            f"{remedy}",
        )


def check_private(config: Config, found: Architecture, where: object) -> None:
    """Raise ``ValueError`` unless the private channels match those that ``found`` was trained with."""
    shards = config.parallel.tensor
    require(
        shards == found.shards,
        f"parallel.tensor={shards}, but {where} was trained with {found.shards} shards at "
        f"sync.ratio={found.ratio}: with private channels, another shard count is another model. Give "
        f"parallel.tensor={found.shards}, on any number of processes",
    )
    # Each shard computes its slice of the logits from its own stream.
    ours, theirs = config.model.padded_vocab(shards), found.model.padded_vocab(shards)
    require(
        ours == theirs or found.plain,
        f"the vocabulary is padded to {ours}, but {where} was trained with {theirs}, which with private "
        f"channels is another function: give model.padded_vocab_size={theirs}",
    )
    scale = config.sync.scale(shards)
    require(
        scale == found.private_scale,
        f"sync.private_scale is {scale}, but {where} was trained with {found.private_scale}: give "
        f"sync.private_scale={found.private_scale}",
    )


def check_ranks(config: Config, text: str, control: Control) -> None:
    """Raise ``ValueError`` on all ranks if their settings, schedules or texts differ. Collective.

    ``text`` is the fingerprint of this rank's text. No later check would notice a difference: replicas
    average their gradients, whatever each one was trained on.
    """
    own = {name: str(attrgetter(name)(config)) for name in SETTINGS if not name.startswith(OF_A_HOST)}
    for file in filter(None, (config.data_sync.route.file, config.islands.route.file)):
        own[f"the file {file}"] = sha256(file.read_bytes()).hexdigest()[:16]
    own["the text"] = text
    first, *others = control.gather(own)
    for rank, theirs in enumerate(others, 1):
        for name, value in theirs.items():
            require(
                value == first[name],
                f"{name} is {first[name]} on rank 0 and {value} on rank {rank}: start every node with the "
                "same settings and the same text",
            )
