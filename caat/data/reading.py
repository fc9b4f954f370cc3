"""Read the text of documents from text, JSON and parquet files; errors name the file and the row."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from conf.checks import named_line

BLOCK_BYTES = 16 << 20
ROWS = 1024
BLANK_LINE = re.compile(r"^[^\S\n]+$", re.MULTILINE)
WHAT_IT_FAILS_WITH = (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException)


def read_documents(kind: str, path: Path, field: str) -> Iterator[pa.Array]:
    """Yield the documents of one file in batches of valid UTF-8 strings, with null for rows without text.

    ``kind`` is text (a document per paragraph), json or parquet (a document per row, from column ``field``).
    Raises ``ValueError``, naming the file and the row or line, if a document is not text or cannot be read.
    """
    reader = {"text": _paragraphs, "json": _json_rows, "parquet": _parquet_rows}[kind]
    try:
        yield from reader(path, field)
    except WHAT_IT_FAILS_WITH as error:
        raise ValueError(
            f"{path} could not be read as {kind} ({named_line(error)}): check that the file is complete and "
            "that its extension matches its content"
        ) from error


def open_file(path: Path) -> IO[bytes]:
    """Open a file, which may be compressed."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".bz2":
        return bz2.open(path)
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    return path.open("rb")


def _paragraphs(path: Path, _: str) -> Iterator[pa.Array]:
    rest = ""
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as file:
            while block := file.read(BLOCK_BYTES):
                block += file.readline()
                *whole, rest = (rest + BLANK_LINE.sub("", block)).split("\n\n")
                yield _stripped(whole)
    except UnicodeDecodeError:
        raise ValueError(_undecodable(path)) from None
    yield _stripped([rest])


def _stripped(paragraphs: list[str]) -> pa.Array:
    """Return the paragraphs without the line ends around them, which depend on their neighbours."""
    stripped = (paragraph.strip("\n") for paragraph in paragraphs)
    return pa.array([paragraph for paragraph in stripped if paragraph], pa.string())


def _undecodable(path: Path) -> str:
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{path}: line {number} {not_utf8(error)}"
    raise AssertionError(f"{path} was not valid UTF-8 before and is now")


def _json_rows(path: Path, field: str) -> Iterator[pa.Array]:
    """Yield the texts. Raise ``ValueError``, naming the columns, if the file has rows, but none a text."""
    rows = missing = 0
    for texts in _json_texts(path, field):
        rows, missing = rows + len(texts), missing + texts.null_count
        yield texts
    if rows and rows == missing:
        raise ValueError(no_column(path, field, _first_columns(path)))


def _json_texts(path: Path, field: str) -> Iterator[pa.Array]:
    with open_file(path) as file:
        line = 1
        while block := file.read(BLOCK_BYTES):
            block += file.readline()
            if line == 1:
                block = block.removeprefix(codecs.BOM_UTF8)
                if block.lstrip().startswith(b"["):
                    rows = load_json(block + file.read(), str(path))
                    yield _texts(((f"{path}: entry {i}", row) for i, row in enumerate(rows, 1)), field)
                    return
                _check_first_row(block, path, field)
            yield from _json_lines(block, path, line, field)
            line += block.count(b"\n")


def _json_lines(block: bytes, path: Path, first: int, field: str) -> list[pa.Array]:
    """Return the texts of the complete lines in ``block``; ``first`` is the number of its first line."""
    try:
        column = pyarrow.json.read_json(
            io.BytesIO(block),
            read_options=pyarrow.json.ReadOptions(block_size=len(block) + 1),
            # Other columns may hold anything, and different types in different rows.
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(field, pa.string())]), unexpected_field_behavior="ignore"
            ),
        )[field]
        column.validate(full=True)
        return column.chunks
    except pa.ArrowException:
        # PyArrow does not name the line, and is stricter than necessary: parse line by line instead.
        lines = ((f"{path}: line {first + i}", line) for i, line in enumerate(block.split(b"\n")))
        return [_texts(((where, load_json(line, where)) for where, line in lines if line.strip()), field)]


def load_json(data: bytes, where: str) -> Any:
    """Parse JSON, with surrogates for invalid UTF-8. Raise ``ValueError`` naming ``where``."""
    try:
        # Invalid UTF-8 is an error only in the text itself, not in other fields.
        return json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} could not be read as json ({named_line(error)}): write one JSON object with "
            "its text per line"
        ) from None


def _texts(rows: Iterable[tuple[str, Any]], field: str) -> pa.Array:
    """Return the text of each (location, row); a row is a JSON object or the text itself."""
    texts: list[str | None] = []
    for where, row in rows:
        text = row.get(field) if isinstance(row, dict) else row
        if isinstance(row, dict) and text is None:
            texts.append(None)
            continue
        if not isinstance(text, str):
            raise ValueError(_not_text(where, field, f"a {type(text).__name__}"))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where} {not_utf8(error)}") from None
        texts.append(text)
    return pa.array(texts, pa.string())


def _check_first_row(block: bytes, path: Path, field: str) -> None:
    """Raise ``ValueError``, naming the columns, if the name ``field`` is nowhere in the first block."""
    if json.dumps(field).encode() in block or json.dumps(field, ensure_ascii=False).encode() in block:
        return
    try:
        row = json.loads(next((line for line in block.splitlines() if line.strip()), b"{}").decode())
    except ValueError:
        return  # reported when the rows are read
    if isinstance(row, dict):
        raise ValueError(no_column(path, field, row))


def _first_columns(path: Path) -> list[str]:
    """Return the columns of the first row of a JSON file whose rows are objects."""
    with open_file(path) as file:
        start = next(line for line in file if line.removeprefix(codecs.BOM_UTF8).strip())
        start = start.removeprefix(codecs.BOM_UTF8)
        whole = start.lstrip().startswith(b"[")
        found = load_json(start + file.read() if whole else start, str(path))
    return list(found[0] if whole else found)


def _parquet_rows(path: Path, field: str) -> Iterator[pa.Array]:
    with pyarrow.parquet.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            return
        schema = file.schema_arrow
        if field not in schema.names:
            raise ValueError(no_column(path, field, schema.names))
        kind = schema.field(field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise ValueError(_not_text(str(path), field, str(kind)))
        first = 1
        for batch in file.iter_batches(ROWS, columns=[field]):
            yield _valid(batch.column(0), path, first)
            first += len(batch)


def _valid(column: pa.Array, path: Path, first: int) -> pa.Array:
    """Return ``column`` as strings. Raise ``ValueError`` for the first row that is not valid UTF-8."""
    column = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    try:
        column = column.cast(pa.string())
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        for row, value in enumerate(column.cast(pa.large_binary()), first):
            try:
                (value.as_py() or b"").decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: row {row} {not_utf8(error)}") from None
        raise


def no_column(where: object, field: str, columns: Iterable[str]) -> str:
    """Return the error message for a missing column ``field`` in ``where``."""
    return (
        f"data.text_field={field} is not a column of {where}, which has {', '.join(columns)}: "
        "set data.text_field to the column that holds the text"
    )


def _not_text(where: str, field: str, kind: str) -> str:
    return (
        f"{where}: data.text_field={field} holds {kind}, not text: set data.text_field to a column of strings"
    )


def not_utf8(error: UnicodeError) -> str:
    assert isinstance(error, UnicodeDecodeError | UnicodeEncodeError)
    what = error.object[error.start]
    code = what if isinstance(what, int) else ord(what)
    if isinstance(what, str) and 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # a byte that "surrogateescape" stored as a surrogate
    name = f"the byte {code:02X}" if code < 256 else f"a lone surrogate, \\u{code:04x}"
    return f"holds {name}, which is not valid UTF-8: fix or remove it, or save the file as UTF-8"
