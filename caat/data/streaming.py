"""Read documents in blocks, so that a Hugging Face dataset is never held whole, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caat.data.hub import cause, check_text_column, load_from_hub
from caat.data.text import check_source, load_documents, stored
from conf.data import DataConfig

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

# Text in a block. The last batch of rows may exceed it.
BLOCK_BYTES = 256 << 20


def blocks_of(config: DataConfig, cache: Path) -> Iterator[Dataset]:
    """Yield the documents of ``config`` like `load_documents`: in one block, or in many with data.streaming.

    Of a stream, only one block at a time is in ``cache``: it is removed when the next one is asked for.
    Raises ``ValueError`` like `load_documents`, and if the stream breaks off.
    """
    check_source(config)
    if not config.streaming:
        yield load_documents(config, cache)
        return
    texts = _texts(config)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"{config.given} holds no documents: give a dataset that contains text")
    while first is not None:
        documents = stored([_up_to_a_block(chain([first], texts))], cache)
        yield documents
        # The file's space is freed when nobody has it mapped.
        del documents
        (cache / "documents.arrow").unlink()
        first = next(texts, None)


def _up_to_a_block(texts: Iterator[pyarrow.Array]) -> Iterator[pyarrow.Array]:
    size = 0
    for batch in texts:
        yield batch
        size += batch.nbytes
        if size >= BLOCK_BYTES:
            return


def _texts(config: DataConfig) -> Iterator[pyarrow.Array]:
    """Yield the texts of the stream in batches, in the form of `load_documents`."""
    from caat.data.reading import ROWS
    from caat.data.row_files import to_text

    stream = load_from_hub(config, streaming=True)
    if config.marked:
        rows = enumerate(_unbroken(iter(stream), config), 1)
        yield from to_text(((f"row {number} of {config.path}", row) for number, row in rows), config)
        return
    for table in _unbroken(stream.with_format("arrow").iter(batch_size=ROWS), config):
        check_text_column(config, {column.name: column.type for column in table.schema})
        yield table[config.text_field].cast("string").combine_chunks()


def _unbroken(stream: Iterator[Any], config: DataConfig) -> Iterator[Any]:
    try:
        yield from stream
    except Exception as error:  # of the network, the file system or the reader of any format
        raise ValueError(
            f"the stream of {config.given} broke off ({cause(error)}): check the network and start again"
        ) from error
