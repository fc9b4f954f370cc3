"""`caat tokenize`: turns text into a folder of token shards, before a run or for another machine."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from caat.data.corpus import prepare, prepared_folder
from caat.data.shards import SPLITS, read_index
from conf.reading.verb import load_verb
from conf.tokenize import TokenizeConfig
from launch.run.tokens import check_tokens


def main(argv: list[str]) -> None:
    """Prepare the text that ``argv`` (``data.path=... out=...``) describes and print statistics.

    The folder's path is the last line. Raises the same ``ValueError`` as :func:`caat.data.corpus.prepare`,
    and one if previously prepared tokens are damaged.
    """
    config = load_verb(TokenizeConfig, argv)
    out = Path(config.out).expanduser() if config.out else None
    fresh = not (out or prepared_folder(config.data)).exists()
    started = perf_counter()
    folder = prepare(config.data, out)
    seconds = perf_counter() - started
    if not fresh:
        check_tokens(folder)

    index = read_index(folder)
    tokens = {split: index.tokens(split) for split in SPLITS}
    total = sum(tokens.values())
    print(f"documents          {index.documents:,}")
    for split, count in tokens.items():
        counted = f", {index.counted[split]:,} of them count as targets" if index.counted else ""
        print(f"{split + ' tokens':<18} {count:,}{counted}")
    print(f"vocabulary         {index.vocab_size:,} pieces")
    print(f"bytes per token    {index.bytes / total:.2f}")
    if fresh:
        print(f"tokens/s           {total / seconds:,.0f} (reading and training the tokenizer included)")
    else:
        print("tokens/s           prepared before, nothing to do")
    print(folder)


if __name__ == "__main__":
    import sys

    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])
