"""Import a Hugging Face model as a checkpoint, holding one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caat.data.tokenizer import load_tokenizer, tokenizer_files
from caat.optim.kinds import WEIGHT
from caat.parallel.sharding import FullTensors
from caat.storage.durable import write_bytes, write_json
from caat.training.checkpoint.architecture import Architecture
from caat.training.checkpoint.files import Content, TensorFile, plan_files, write_indices
from caat.training.checkpoint.folder import written_aside
from caat.training.checkpoint.reading import Tensors
from caat.training.checkpoint.state import write_checksums
from conf.checks import require
from conf.model import ModelConfig
from conf.partition import shared_channels
from conf.sync import SyncConfig
from layers.channel_order import reordered
from layers.huggingface.families import model_config, read_config, read_ends, read_family, read_kind
from layers.huggingface.tokenizers import choose_tokenizer
from layers.weights import gpt_weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = ("F32", "BF16", "F16")
# Suffix of buffers in older files, which follow from the configuration.
BUFFERS = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Source:
    """A checked model folder: all its tensors exist, with the expected shapes and types."""

    folder: Path
    architecture: Architecture
    # Whether config.json ties the embeddings. The model is untied if the files still hold another head.
    flagged_tied: bool
    tokenizer: Path
    tensors: Tensors
    # The channels of the residual stream in the order to write, [h]; None: as they are.
    order: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size of the checkpoint's weights."""
        return sum(each.bytes for each in _full_tensors(self.architecture.model))

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        weight = self.tensors(name, shape).float()
        return weight if self.order is None else reordered(name, weight, self.order)


def check_source(folder: Path, shards: int | None, ratio: float | None) -> Source:
    """Check the model in ``folder``, to be split into ``shards`` and synchronised at ``ratio`` (default 1).

    Raises ``ValueError`` for an unsupported model or a file that does not match config.json.
    """
    if read_kind(folder).exported:
        architecture = _exported(folder, shards, ratio)
    else:
        model = model_config(read_family(folder), folder)
        require(
            shards is not None, "parallel.tensor is required: give the number of shards, parallel.tensor=N"
        )
        assert shards is not None
        model.check_shards(shards)
        ratio = 1.0 if ratio is None else ratio
        channels = shared_channels(model.hidden, ratio, shards)
        architecture = Architecture(model, shards, ratio, channels, SyncConfig().scale(shards))
    model, tensors = architecture.model, _open(folder)
    flagged = model.tie_embeddings
    if flagged and not _head_is_embedding(folder, tensors, model):
        model = replace(model, tie_embeddings=False)
    _check_tensors(folder, tensors, model)
    path = choose_tokenizer(folder)
    tokenizer = load_tokenizer(path)
    require(
        tokenizer.vocab_size() <= model.vocab_size,
        f"{path} has {tokenizer.vocab_size():,} pieces, but the model has only vocab_size="
        f"{model.vocab_size}: it belongs to another model, replace it by this model's tokenizer",
    )
    eos = tokenizer.eos_id()
    more = tuple(end for end in read_ends(folder) if end != eos and end < tokenizer.vocab_size())
    architecture = replace(architecture, model=model, bos=tokenizer.bos_id(), eos=eos, more_ends=more)
    return Source(folder, architecture, flagged, path, tensors)


def import_checkpoint(source: Source, to: Path, result: dict[str, Any], show: Callable[[int], None]) -> None:
    """Write ``source`` as the checkpoint ``to``, atomically, with ``result`` as conversion.json.

    ``show`` is called with the size of every tensor written. Raises ``OSError`` if writing fails.
    """
    files = plan_files([Content(WEIGHT.name, _full_tensors(source.architecture.model))], 1)
    with written_aside(to) as aside:
        checksums = write_indices(aside, files)
        for file in files:
            out = TensorFile(aside / file.name, file.tensors)
            try:
                for each in file.tensors:
                    for name, shape in zip(each.names, each.shapes, strict=True):
                        require(
                            out.append(source.read(name, shape)),
                            f"{source.folder}: {name} holds nan or inf: it is damaged, or training diverged",
                        )
                    show(each.bytes)
                checksums[file.name] = out.close()
            finally:
                out.abandon()
        for name, content in tokenizer_files(source.tokenizer).items():
            checksums[name] = write_bytes(aside / name, content)
        checksums["config.json"] = write_json(aside / "config.json", source.architecture.to_json())
        checksums["conversion.json"] = write_json(aside / "conversion.json", result)
        write_checksums(aside, checksums)


def _exported(folder: Path, shards: int | None, ratio: float | None) -> Architecture:
    """Return the architecture of a folder that `caat convert` exported, even if `transformers` resaved it."""
    found = Architecture.parse(read_config(folder), folder / "config.json")
    for name, ours, theirs in (
        ("parallel.tensor", shards, found.shards),
        ("sync.ratio", ratio, found.ratio),
    ):
        require(
            ours in (None, theirs),
            f"{name}={ours}, but {folder} was trained with {theirs}, which is part of the model: leave "
            f"{name} out",
        )
    return found


def _open(folder: Path) -> Tensors:
    """Open the tensors. Raise ``ValueError`` if they are pickled or missing."""
    require(
        any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin")),
        f"{folder} holds pickled weights (.bin), which could run code when loaded: if you trust it, load it "
        "with transformers and save it again with save_pretrained(), which writes safetensors",
    )
    return Tensors(folder)


def _check_tensors(folder: Path, tensors: Tensors, model: ModelConfig) -> None:
    """Raise ``ValueError`` unless the files hold exactly the model's tensors; a tied head may be there."""
    wanted = {
        name: shape
        for each in _full_tensors(model)
        for name, shape in zip(each.names, each.shapes, strict=True)
    }
    known = wanted.keys() | ({HEAD} if model.tie_embeddings else set())
    extra = {name for name in tensors.names if name not in known and not name.endswith(BUFFERS)}
    require(
        not extra,
        f"{folder} has {len(extra)} tensors that do not belong to a model with its config.json, such as "
        f"{min(extra, default='')}: give the config.json of the model",
    )
    for name, shape in wanted.items():
        tensors.check(name, shape)
        _check_type(folder, tensors, name)


def _check_type(folder: Path, tensors: Tensors, name: str) -> None:
    kind = tensors.dtype(name)
    require(kind in FLOATS, f"{folder}: {name} is {kind}, and only {', '.join(FLOATS)} are read")


def _head_is_embedding(folder: Path, tensors: Tensors, model: ModelConfig) -> bool:
    if HEAD not in tensors.names:
        return True
    shape = (model.vocab_size, model.hidden)
    for name in (HEAD, EMBEDDING):
        tensors.check(name, shape)
        _check_type(folder, tensors, name)
    return torch.equal(tensors(HEAD, shape), tensors(EMBEDDING, shape))


def _full_tensors(model: ModelConfig) -> list[FullTensors]:
    return [each.full_tensors(None) for each in gpt_weights(model)]
