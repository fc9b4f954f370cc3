"""Checkpoints: safetensors with Hugging Face Llama names, JSON beside it, nothing to unpickle.

A folder ``step-00000100`` holds model.safetensors (or several, with Hugging Face's index), config.json,
the tokenizer and state.json with a checksum of every file. It knows no process count: full tensors, in
shard order, that load at any P, data-parallel size and ZeRO stage.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from conf.schema import ModelConfig, require

FILE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Architecture:
    """What makes the function: the model, and how it is cut."""

    model: ModelConfig
    shards: int
    ratio: float
    shared_channels: int
    private_scale: float

    def to_json(self) -> dict[str, Any]:
        """A Hugging Face Llama configuration with our part under ``caat``."""
        c = self.model
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": c.hidden,
            "intermediate_size": c.ffn,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "max_position_embeddings": c.sequence,
            "vocab_size": c.vocab_size,
            "rms_norm_eps": c.norm_eps,
            "rope_theta": c.rope_base,
            "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
            "initializer_range": c.init_std,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
            "caat": {
                "shards": self.shards,
                "ratio": self.ratio,
                "shared_channels": self.shared_channels,
                "private_scale": self.private_scale,
                "padded_vocab_size": c.padded_vocab(self.shards),
            },
        }

    @staticmethod
    def from_json(values: dict[str, Any], where: Path) -> Architecture:
        """Raises ``ValueError`` naming the first key that is missing."""
        try:
            ours = values["caat"]
            model = ModelConfig(
                name=where.name,
                layers=values["num_hidden_layers"],
                hidden=values["hidden_size"],
                ffn=values["intermediate_size"],
                heads=values["num_attention_heads"],
                kv_heads=values["num_key_value_heads"],
                sequence=values["max_position_embeddings"],
                vocab_size=values["vocab_size"],
                padded_vocab_size=ours["padded_vocab_size"],
                rope_base=values["rope_theta"],
                norm_eps=values["rms_norm_eps"],
                init_std=values["initializer_range"],
            )
            shards, ratio = ours["shards"], ours["ratio"]
            scale = ours.get("private_scale", sqrt(shards))
            return Architecture(model, shards, ratio, ours["shared_channels"], scale)
        except KeyError as missing:
            raise ValueError(f"{where}: config.json has no {missing}: is it a caat checkpoint?") from None


class Writer:
    """Collects full tensors into files of at most ``FILE_BYTES`` in a folder that nobody reads yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._where: dict[str, int] = {}
        self._pending: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > FILE_BYTES:
            self._flush()
        self._pending[name] = tensor.cpu().contiguous()
        self._bytes += size
        self._total += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        path = self.folder / f"part-{len(self._files)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._where.update(dict.fromkeys(self._pending, len(self._files)))
        self._files.append(path)
        self._pending, self._bytes = {}, 0

    def finish(self) -> None:
        """Give the files Hugging Face's names, and the index if there are several."""
        self._flush()
        count = len(self._files)
        if count == 1:
            self._files[0].rename(self.folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for path, name in zip(self._files, names, strict=True):
            path.rename(self.folder / name)
        index = {
            "metadata": {"total_size": self._total},
            "weight_map": {name: names[i] for name, i in self._where.items()},
        }
        _write_json(self.folder / "model.safetensors.index.json", index)


def save(
    checkpoints: Path,
    tensors: Iterable[tuple[str, Tensor | None]],
    architecture: Architecture,
    tokenizer: Path,
    state: dict[str, Any],
    first_rank: bool,
) -> Path:
    """Write ``step-<state["step"]>`` under ``checkpoints``, then point ``latest`` at it.

    Every rank must call it: making the full ``tensors`` is collective. Only ``first_rank`` writes.
    """
    folder = checkpoints / f"step-{state['step']:08}"
    if not first_rank:
        for _ in tensors:
            pass
        return folder
    aside = checkpoints / f".{folder.name}.partial"
    writer = Writer(aside)
    for name, tensor in tensors:
        assert tensor is not None
        writer.add(name, tensor)
    writer.finish()
    _write_json(aside / "config.json", architecture.to_json())
    shutil.copyfile(tokenizer, aside / "tokenizer.model")
    checksums = {path.name: _checksum(path) for path in sorted(aside.iterdir())}
    _write_json(aside / "state.json", {**state, "sha256": checksums})
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    pointer = checkpoints / ".latest.partial"
    pointer.write_text(folder.name + "\n")
    pointer.rename(checkpoints / "latest")
    return folder


def find(path: str | Path) -> Path:
    """The checkpoint folder meant by ``path``: itself, or the latest of a run or checkpoints folder.

    Raises ``ValueError`` if there is none.
    """
    start = Path(path)
    require(start.is_dir(), f"checkpoint={path} is not a folder: give a run folder or a checkpoint in it")
    if (start / "config.json").is_file():
        return start
    for checkpoints in (start, start / "checkpoints"):
        if (checkpoints / "latest").is_file():
            folder = checkpoints / (checkpoints / "latest").read_text().strip()
            require(folder.is_dir(), f"{checkpoints / 'latest'} names {folder.name}, which is not there")
            return folder
    raise ValueError(f"checkpoint={path} holds no checkpoint: no config.json, and no `latest` file in it")


def read_architecture(folder: Path) -> Architecture:
    """From config.json; raises ``ValueError`` if it is missing, damaged or not ours."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: config.json cannot be read ({error})") from None
    return Architecture.from_json(values, folder)


class Weights:
    """``full(name, shape)`` of a checkpoint: one tensor at a time, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        single = folder / "model.safetensors"
        index = folder / "model.safetensors.index.json"
        if single.is_file():
            self._where = dict.fromkeys(self._open(single.name).keys(), single.name)
        elif index.is_file():
            self._where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            raise ValueError(f"{folder} has no model.safetensors: is it a whole checkpoint?")

    def _open(self, file: str):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._folder / file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self._folder / file} is missing or damaged ({error})") from None

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._where:
            raise ValueError(f"{self._folder} has no tensor {name}: it belongs to another model")
        tensor = self._open(self._where[name]).get_tensor(name)
        require(
            tuple(tensor.shape) == tuple(shape),
            f"{self._folder}: {name} has shape {tuple(tensor.shape)} where config.json means {tuple(shape)}",
        )
        return tensor


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
