"""A tokenizer that is trained on all sources of a mixture."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from caat.data.corpus import TOKENIZER_BYTES, locked, settings_key, texts_of, tokenizer_lines
from caat.data.split import bounds_of
from caat.data.streaming import blocks_of
from caat.data.tokenizer import TOKENIZER_FILES, train_tokenizer
from conf.data import DataConfig


def joint_tokenizer(sources: Mapping[str, DataConfig]) -> Path:
    """Return the path of the tokenizer that is trained on ``sources``, whatever their weights."""
    keys = [settings_key(source) for source in sources.values()]
    digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:8]
    (folder,) = {Path(source.dir).expanduser() for source in sources.values()}
    return folder / f"tokenizer-{digest}" / TOKENIZER_FILES[0]


def train_joint_tokenizer(sources: Mapping[str, DataConfig]) -> None:
    """Train the tokenizer of :func:`joint_tokenizer` unless it exists.

    Every source gives its text, up to the same limit; a larger one gives every n-th document.

    Any number of processes may call this at once.
    """
    model = joint_tokenizer(sources)
    folder, (vocab_size,) = model.parent, {source.vocab_size for source in sources.values()}
    with locked(folder):
        if model.is_file():
            return
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            train_tokenizer(_lines(sources, partial / "scratch"), vocab_size, partial / model.name)
            shutil.rmtree(partial / "scratch", ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _lines(sources: Mapping[str, DataConfig], scratch: Path) -> Iterator[str]:
    for name, source in sources.items():
        documents = next(blocks_of(source, cache=scratch / name))
        bounds = bounds_of(texts_of(documents), source.validation, source.test)
        yield from tokenizer_lines(documents, bounds, source.marked, TOKENIZER_BYTES // len(sources))
        shutil.rmtree(scratch / name, ignore_errors=True)
