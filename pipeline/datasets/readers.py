"""Reads documents from .txt, .jsonl and .parquet files, some megabytes at a time. What is wrong in a file is named by line or row."""

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.errors import UserError
from pipeline.datasets import blocks, lines
from pipeline.datasets.blocks import Block, Takes

Advance = Callable[[int], None]
"""Is told how many bytes more of a file are done."""
_ROWS = 128
SPARING: dict[str, Any] = {"pre_buffer": False, "buffer_size": 2**20}
"""How a ParquetFile reads without holding whole row groups."""


def read(file: Path, separator: str | None, column: str, takes: Takes, advance: Advance) -> Iterator[Block]:
    """The documents of a file, which have to be what the encoder `takes`. Raises UserError.

    Those of .jsonl and .parquet are UTF-8 always. Of a .txt, a byte order mark at its beginning is no part of the text.
    """
    with told(file):
        if file.suffix == ".jsonl":
            yield from _jsonl(file, column, advance)
        elif file.suffix == ".parquet":
            yield from _parquet(file, column, advance)
        else:
            yield from lines.documents(chunks(file, beginning(file), file.stat().st_size, takes, advance), separator)


@contextmanager
def told(file: Path) -> Iterator[None]:
    """What the system says of `file` becomes a UserError: one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or ' '.join(str(error).split())}") from None


def beginning(file: Path) -> int:
    """Where the text of a .txt begins: behind the byte order mark (UTF-8's EF BB BF) that some editors put there."""
    with file.open("rb") as handle:
        return len(codecs.BOM_UTF8) if handle.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0


def chunks(file: Path, start: int, stop: int, takes: Takes, advance: Advance) -> Iterator[bytes]:
    """The bytes of a file from `start` to `stop`. Raises UserError, which names the line of what the encoder does not take."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with file.open("rb", buffering=0) as handle:
        handle.seek(start)
        at = start
        while at < stop and (chunk := handle.read(min(blocks.BLOCK, stop - at))):
            if takes == "text":
                try:
                    decoder.decode(chunk, at + len(chunk) == stop)
                except UnicodeDecodeError as error:
                    bad = at + len(chunk) - len(error.object) + error.start
                    raise UserError(f"{file}:{_line(file, bad)}: byte {error.object[error.start]:#04x} is no UTF-8 text") from None
            elif takes == "bytes below 255" and (found := chunk.find(0xFF)) >= 0:
                ends = "with which documents of bytes end; UTF-8 text never holds it"
                raise UserError(f"{file}:{_line(file, at + found)}: byte 0xff, {ends}")
            at += len(chunk)
            yield chunk
            advance(len(chunk))


def _line(file: Path, at: int) -> int:
    """Number of the line that the byte at `at` is in."""
    return 1 + sum(chunk.count(b"\n") for chunk in chunks(file, 0, at, "bytes", lambda _: None))


def _jsonl(file: Path, column: str, advance: Advance) -> Iterator[Block]:
    with file.open("rb") as handle:
        done = 0
        found = (_value(line, column, f"{file}:{number}") for number, line in enumerate(handle, 1) if not line.isspace())
        for block in blocks.gathered(found, blocks.BLOCK):
            yield block
            advance(handle.tell() - done)
            done = handle.tell()


def _value(line: bytes, column: str, place: str) -> bytes:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: a JSON object is expected, not a {_NOUNS[type(row)]}")
    if column not in row:
        raise UserError(f"{place}: has no '{column}' (keys: {', '.join(row) or 'none'}); another is named under column")
    if not isinstance(value := row[column], str):
        raise UserError(f"{place}: '{column}' is a {_NOUNS[type(value)]}, and text is expected")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: '{column}' holds half of a surrogate pair, which is no text") from None


_NOUNS: dict[type, str] = {
    dict: "mapping", list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null",
}  # fmt: skip


def _parquet(file: Path, column: str, advance: Advance) -> Iterator[Block]:
    try:
        with pq.ParquetFile(file, **SPARING) as content:
            if column not in content.schema_arrow.names:
                raise UserError(f"{file}: has no column '{column}' (columns: {', '.join(content.schema_arrow.names)})")
            rows, size, done = content.metadata.num_rows, file.stat().st_size, 0
            found = _batches(content.iter_batches(_ROWS, columns=[column]), column, str(file))
            for share, block in _counted(found, rows):
                yield block
                advance(int(share * size) - done)
                done = int(share * size)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not readable as .parquet: {' '.join(str(error).split())}") from None


def _batches(tables: Iterator[Any], column: str, place: str) -> Iterator[list[bytes]]:
    row = 1
    for table in tables:
        yield texts(table[column], f"{place}: row {{}}: column '{column}'", row)
        row += len(table)


def _counted(batches: Iterator[list[bytes]], rows: int) -> Iterator[tuple[float, Block]]:
    """Blocks of batches, each with the share of the rows that are done with it."""
    held: list[bytes] = []
    weight = done = 0
    for batch in batches:
        held += batch
        weight += sum(map(len, batch))
        done += len(batch)
        if weight >= blocks.BLOCK:
            yield done / rows, blocks.whole(held)
            held, weight = [], 0
    if held:
        yield 1.0, blocks.whole(held)


def texts(column: Any, place: str, first: int) -> list[bytes]:
    """An Arrow column of text as UTF-8 bytes. `place` is how a row that is none is named, `{}` its number; `first` is the first."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)):
        raise UserError(f"{place.format(first)} is {column.type}, and text is expected")
    if column.null_count:
        raise UserError(f"{place.format(first + column.is_null().index(True).as_py())} is empty (null), and text is expected")
    found = column.cast(pa.large_binary()).to_pylist()
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise UserError(f"{place.format(first + _undecodable(found))} is no UTF-8 text") from None
    return found


def _undecodable(found: list[bytes]) -> int:
    for row, value in enumerate(found):
        try:
            value.decode()
        except UnicodeDecodeError:
            return row
    return 0
