"""Export a checkpoint as a Hugging Face folder; its weights already have the right names and shapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from caat.data.sentencepiece_export import as_huggingface
from caat.optim.kinds import WEIGHT
from caat.storage.durable import write_bytes, write_json
from caat.training.checkpoint.architecture import MISTRAL, Architecture, read_architecture
from caat.training.checkpoint.files import stem
from caat.training.checkpoint.folder import written_aside
from caat.training.checkpoint.reading import Tensors
from caat.training.checkpoint.state import read_checked, read_checksums
from caat.training.checkpoint.tokenizer import checked_tokenizer
from conf.checks import require

MODELING = Path(__file__).with_name("modeling_caat.py")
AUTO_MAP = {"AutoConfig": "modeling_caat.CaatConfig", "AutoModelForCausalLM": "modeling_caat.CaatForCausalLM"}
# Written as the activation. The folder has model_type llama or mistral, so that its tokenizer and
# configuration load without trust_remote_code. This invalid activation prevents a plain model, which computes
# another function, from being built from it.
NOT_PLAIN = "modeling_caat.py has it: load with trust_remote_code=True"
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Trained:
    """A checkpoint with everything that an export needs."""

    folder: Path
    architecture: Architecture
    checksums: dict[str, str]
    # Contents by file name.
    tokenizer: dict[str, bytes]

    @property
    def files(self) -> list[Path]:
        """The weight files."""
        names = (name for name in self.checksums if name.startswith(stem(WEIGHT.name)))
        return [self.folder / name for name in sorted(names)]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def check_trained(folder: Path) -> Trained:
    """Read the checkpoint ``folder``. Raise ``ValueError`` if a file is missing or damaged."""
    tokenizer = as_huggingface(checked_tokenizer(folder))
    trained = Trained(folder, read_architecture(folder), read_checksums(folder), tokenizer)
    for name in trained.checksums:
        if not name.endswith(".safetensors"):
            read_checked(folder / name)
    for path in trained.files:
        if not path.is_file():
            raise ValueError(f"{path} is missing: the checkpoint is damaged, use another one")
    return trained


def export_checkpoint(
    trained: Trained, to: Path, result: dict[str, Any], show: Callable[[int], None]
) -> None:
    """Write ``trained`` as the Hugging Face folder ``to``, atomically, with ``result`` as conversion.json.

    ``show`` is called with the size of every block copied. Raises ``ValueError`` if a file does not match
    its checksum or holds weights that are not finite, ``OSError`` if writing fails.
    """
    with written_aside(to) as aside:
        for path in trained.files:
            if _copy(path, aside / path.name, show) != trained.checksums[path.name]:
                raise ValueError(f"{path} is damaged: its content does not match the checksum in state.json")
        _check_finite(Tensors(aside), trained.folder)
        for name, content in trained.tokenizer.items():
            write_bytes(aside / name, content)
        values = trained.architecture.to_json()
        if trained.architecture.transformers_class:
            del values["caat"]
        else:
            values |= {
                "architectures": ["CaatForCausalLM"],
                "model_type": MISTRAL[0] if "sliding_window" in values else "llama",
                "auto_map": AUTO_MAP,
                "hidden_act": NOT_PLAIN,
            }
            write_bytes(aside / MODELING.name, MODELING.read_bytes())
        write_json(aside / "config.json", values)
        write_json(aside / "conversion.json", result)


def _check_finite(tensors: Tensors, folder: Path) -> None:
    for name in tensors.names:
        require(
            bool(tensors.whole(name).isfinite().all()),
            f"{folder}: {name} holds nan or inf, although its checksum matches: give an earlier checkpoint",
        )


def _copy(source: Path, to: Path, show: Callable[[int], None]) -> str:
    """Copy a file and return the checksum of the bytes copied."""
    digest = xxh3_128()
    with source.open("rb") as reading, to.open("xb") as writing:
        while block := reading.read(BLOCK_BYTES):
            digest.update(block)
            writing.write(block)
            show(len(block))
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()
