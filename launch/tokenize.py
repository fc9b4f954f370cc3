"""`caat tokenize`: turns text into a folder of token shards, before a run or for another machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from time import perf_counter

from caat.data.prepared import Prepared, check_given, planned_folders, prepare_text
from caat.data.shards import read_index
from caat.data.text import is_prepared
from conf.reading.as_typed import quoted
from conf.reading.settings import typed
from conf.reading.verb import load_verb
from conf.tokenize import TokenizeConfig
from launch.run.tokens import check_tokens


def main(argv: list[str]) -> None:
    """Prepare the text that ``argv`` (``data.path=... out=...``) describes and print statistics.

    The folder's path is the last line; for a mixture, the command that trains on it. Raises the same
    ``ValueError`` as :func:`caat.data.prepared.prepare_text`, and one if previously prepared tokens are
    damaged.
    """
    config = load_verb(TokenizeConfig, argv)
    out = Path(config.out).expanduser() if config.out else None
    planned = planned_folders(config.data, out)
    before = {name: folder for name, folder in planned.items() if is_prepared(folder)}
    started = perf_counter()
    prepared = prepare_text(config.data, out)
    seconds = perf_counter() - started
    check_tokens(Prepared(before))
    for folder in prepared.folders.values():
        check_given(config.data, folder)
    for name, folder in prepared.folders.items():
        if prepared.mixed:
            print(f"{name}:")
        _show(folder)
    made = [folder for name, folder in prepared.folders.items() if name not in before]
    if not made:
        print("tokens/s           prepared before, nothing to do")
    else:
        indexes = map(read_index, made)
        total = sum(index.tokens(split) for index in indexes for split in index.splits)
        print(f"tokens/s           {total / seconds:,.0f} (reading and training the tokenizer included)")
    if prepared.mixed:
        folders = {name: _as_value(str(folder)) for name, folder in prepared.folders.items()}
        settings = f"data.mixture={typed(config.data.mixture)}", f"data.sources={typed(folders)}"
        print(f"caat pretrain {shlex.join(settings)}")
    else:
        print(prepared)


def _as_value(path: str) -> str:
    """Return ``path`` as Hydra reads it within a map."""
    return path if re.fullmatch(r"[A-Za-z0-9_./-]+", path) else quoted(path)


def _show(folder: Path) -> None:
    index = read_index(folder)
    tokens = {split: index.tokens(split) for split in index.splits}
    total = sum(tokens.values())
    print(f"documents          {index.documents:,}")
    for split, count in tokens.items():
        counted = f", {index.counted[split]:,} of them count as targets" if index.counted else ""
        print(f"{split + ' tokens':<18} {count:,}{counted}")
    print(f"vocabulary         {index.vocab_size:,} pieces")
    print(f"bytes per token    {index.bytes / total:.2f}")


if __name__ == "__main__":
    import sys

    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])
