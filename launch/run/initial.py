"""A new run from existing weights: what it takes from their checkpoint, and what must match it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from caat.data.prepared import Prepared
from caat.data.tokenizer import tokenizer_difference
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.folder import find, whole_checkpoints
from caat.training.checkpoint.tokenizer import checked_tokenizer
from conf.checks import require
from conf.model import ModelConfig
from conf.schema import Config
from launch.run.agreement import check_model, check_private

# Settings that runs of earlier versions do not have.
LATER = ("rope_scaling", "head_dim", "attention_bias", "qk_norm", "tie_embeddings")


def initial_checkpoint(path: str) -> Path:
    """Return the checkpoint that ``initialize=path`` refers to; raise ``ValueError`` if there is none."""
    return find(path, "initialize")


def adopt(config: DictConfig, given: Collection[str]) -> None:
    """Take model settings that are not ``given``, and the tokenizer, from the checkpoint of ``initialize``.

    ``given`` names settings and groups on the command line; the group ``model`` covers all model settings.
    """
    if config.initialize is None:
        return
    names = {f"model.{field.name}" for field in fields(ModelConfig) if field.name not in LATER}
    if config.data.tokenizer is not None and ("model" in given or names <= set(given)):
        return
    checkpoint = initial_checkpoint(config.initialize)
    found = read_architecture(checkpoint)
    if "model" not in given:
        values = {field.name: getattr(found.model, field.name) for field in fields(ModelConfig)}
        values["name"] = Path(config.initialize).expanduser().resolve().name
        if config.parallel.tensor != found.shards:
            values["padded_vocab_size"] = None
        for name, value in values.items():
            # Settings of scaled rotary positions belong together: one that is given replaces all.
            if not any(each == f"model.{name}" or each.startswith(f"model.{name}.") for each in given):
                config.model[name] = value
    if config.data.tokenizer is None:
        config.data.tokenizer = str(checked_tokenizer(checkpoint))


def keep_tokenizer(config: DictConfig, run: Path) -> None:
    """Take the tokenizer from the newest checkpoint of ``run``, which continues, if its own file is gone."""
    given, checkpoints = config.data.tokenizer, whole_checkpoints(run / "checkpoints")
    if given is not None and not Path(given).expanduser().is_file() and checkpoints:
        config.data.tokenizer = str(checked_tokenizer(checkpoints[0]))


def check_initial(config: Config, tokens: Prepared | None = None) -> None:
    """Raise ``ValueError`` unless the run can start from ``initialize``; ``tokens``: the prepared text."""
    if config.initialize is None:
        return
    checkpoint = initial_checkpoint(config.initialize)
    found = read_architecture(checkpoint)
    where = f"initialize={config.initialize}"
    # A run may extend the context of the weights by a scaling of its own. Leaving theirs out is a mistake,
    # and so is another length with the same dynamic scaling, which begins there.
    scaling = config.model.rope_scaling
    rescaled = scaling.kind != "none" and scaling != found.model.rope_scaling
    check_model(config, found, where, "leave the model out to take it from there", scaling=not rescaled)
    if not found.plain:
        check_private(config, found, where)
    theirs = checked_tokenizer(checkpoint)
    ours = tokens.tokenizer if tokens else Path(config.data.tokenizer or theirs).expanduser()
    other = tokenizer_difference(ours, theirs)
    require(
        not other,
        f"{ours} differs from {theirs}, the tokenizer that the weights were trained with ({other}): leave "
        "data.tokenizer out, or give text that is not prepared yet",
    )
