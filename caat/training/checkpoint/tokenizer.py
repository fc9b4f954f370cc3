"""The tokenizer of a checkpoint, verified against its checksums."""

from __future__ import annotations

from pathlib import Path

from caat.data.huggingface_tokenizer import SETTINGS, TEMPLATE
from caat.data.tokenizer import find_tokenizer
from caat.training.checkpoint.state import read_checked, read_checksums
from conf.checks import require


def checked_tokenizer(folder: Path) -> Path:
    """Return the tokenizer of the checkpoint ``folder``. Folders without state.json have no checksums.

    Raises ``ValueError`` if there is none, it is damaged or it was not written with the checkpoint.
    """
    path = find_tokenizer(folder)
    if (folder / "state.json").is_file():
        checksums = read_checksums(folder)
        require(
            path.name in checksums,
            f"{path} is not a file of this checkpoint, as listed in state.json: remove it, or restore the "
            "one that the model was trained with",
        )
        for name in {path.name, SETTINGS, TEMPLATE} & checksums.keys():
            read_checked(folder / name)
    return path
