"""Read rows from JSON and parquet files and render them; errors name the file and the row."""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from caat.data.chat import Rendered
from caat.data.reading import ROWS, WHAT_IT_FAILS_WITH, load_json, not_utf8, open_file
from caat.data.rows import Render, renderer
from conf.checks import named_line, require
from conf.data import DataConfig


def to_text(rows: Iterable[tuple[str, Any]], config: DataConfig) -> Iterator[pa.Array]:
    """Render the (location, row) and yield them in batches, each as the JSON of a ``Rendered``.

    Raises ``ValueError`` with the location for a row that cannot be used.
    """
    rest, render = iter(rows), renderer(config)
    while batch := list(islice(rest, ROWS)):
        yield pa.array([json.dumps(_rendered(*each, config, render)) for each in batch], pa.string())


def read_rows(kind: str, path: Path, columns: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (location, row) for each row of a file of ``kind`` json or parquet; blank lines are skipped.

    Other columns of a parquet file than ``columns`` are read only if one of these is missing.
    """
    try:
        yield from _parquet_rows(path, columns) if kind == "parquet" else _json_rows(path)
    except WHAT_IT_FAILS_WITH as error:
        raise ValueError(
            f"{path} could not be read as {kind} ({named_line(error)}): check that the file is complete and "
            "that its extension matches its content"
        ) from error


def _rendered(where: str, row: Any, config: DataConfig, render: Render) -> Rendered:
    require(isinstance(row, dict), f"{where} holds a {type(row).__name__}, not an object with columns")
    for setting, name in config.columns.items():
        require(
            name in row,
            f"{where} has no column {name} ({setting}), which data.format={config.format} needs: it has "
            f"{', '.join(row) or 'none'}",
        )
    try:
        rendered = render(row)
        rendered.text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds text that is not valid UTF-8: fix or remove it") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    require(bool(rendered.counted), f"{where}: the chat template writes no word of the assistant's")
    return rendered


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with open_file(path) as file:
        begun = False
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            if not begun and line.lstrip().startswith(b"["):
                rows = load_json(line + file.read(), str(path))
                yield from ((f"{path}: entry {entry}", row) for entry, row in enumerate(rows, 1))
                return
            begun, where = True, f"{path}: line {number}"
            yield where, load_json(line, where)


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, Any]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        # The message about a missing column names those that there are.
        chosen = [name for name in names if name in columns] if set(columns) <= set(names) else names
        first = 1
        for batch in file.iter_batches(ROWS, columns=chosen):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                for number in range(len(batch)):
                    _check_row(batch.slice(number, 1), f"{path}: row {first + number}")
                raise
            yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, first))
            first += len(batch)


def _check_row(row: pa.RecordBatch, where: str) -> None:
    try:
        row.to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} {not_utf8(error)}") from None
