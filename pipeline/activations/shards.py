"""Reads one file of an array: its chunks, and the index at its end that says where they lie (docs/activation-store.md, section 3).

Zarr libraries read the same file. This reads it without them because what is not compressed then goes straight where it is wanted, and
because not all of them compare the crc32c of a chunk when they read a part of a file (zarrs does not).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from crc32c import crc32c
from numcodecs import blosc, zstd

from pipeline.activations.mapped import MappedFiles
from pipeline.artifacts.manifest import DIFFERENT
from pipeline.artifacts.storage import Storage

CRC = 4
"""Bytes of a crc32c."""
MISPLACED = "its place in the shard's index is not as published"
DECODERS: dict[str, Callable[..., Any]] = {"zstd": zstd.decompress, "blosc": blosc.decompress}
"""They do not hold the interpreter's lock."""


@dataclass(frozen=True)
class Described:
    """What its `zarr.json` says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_rows: int
    per_shard: int
    """Chunks in a file."""
    compression: str | None

    @classmethod
    def of(cls, content: bytes) -> "Described":
        """From the bytes of a `zarr.json`, which have been compared with those published."""
        about = json.loads(content)
        (sharding,) = about["codecs"]
        inner = sharding["configuration"]
        shard, chunk = about["chunk_grid"]["configuration"]["chunk_shape"][0], inner["chunk_shape"][0]
        compression = next((codec["name"] for codec in inner["codecs"] if codec["name"] in DECODERS), None)
        return cls(tuple(about["shape"]), np.dtype(about["data_type"]).newbyteorder("<"), chunk, shard // chunk, compression)

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk as decoded; the last one of an array is filled up to it."""
        return self.chunk_rows * math.prod(self.shape[1:]) * self.dtype.itemsize


class Shard:
    """A file of an array. It is opened when it is first read, and stays so while somebody holds this.

    Reading raises ValueError or RuntimeError where the bytes are not what a writer wrote, and the storage's `faults`.
    """

    def __init__(self, storage: Storage, name: str, size: int, about: Described) -> None:
        """`size` is that of the file as published."""
        self.storage, self.name, self.size, self.about = storage, name, size, about

    @cached_property
    def _file(self) -> Any:
        return self.storage.opened(self.name)

    @cached_property
    def _index(self) -> np.ndarray:
        """Offset and size of each chunk (chunks, 2), uint64."""
        index, crc = bytearray(16 * self.about.per_shard), bytearray(CRC)
        found = self._file.read_at(self.size - len(index) - CRC, [index, crc])
        if found != len(index) + CRC or crc32c(bytes(index)) != int.from_bytes(crc, "little"):
            raise ValueError("the index of the shard differs from that published")
        return np.frombuffer(index, dtype="<u8").reshape(-1, 2)

    def read(self, number: int, rows: np.ndarray) -> int:
        """Puts the first rows of a chunk into `rows`, which is contiguous, as many as it holds, and gives their crc32c."""
        at, size = self._place(number)
        if self.about.compression:
            return self._decoded(at, size, rows)
        crc, padding = bytearray(CRC), bytearray(self.about.chunk_bytes - rows.nbytes)
        found = self._file.read_at(at, [rows.data.cast("B"), padding, crc])
        if found != size:
            raise ValueError(DIFFERENT)
        return compared(rows, padding, crc)

    def map_into(self, files: MappedFiles, own: int, chunks: int) -> list[int]:
        """Maps the file, not compressed, as number `own` of `files`, and gives where each of its first `chunks` chunks begins in their
        memory."""
        places = [self._place(number)[0] for number in range(chunks)]
        if any(at % self.about.dtype.itemsize for at in places):
            raise ValueError(MISPLACED)
        files.map(own, self._file.descriptor)
        return [files.starts[own] + at for at in places]

    def _place(self, number: int) -> tuple[int, int]:
        """Where a chunk begins in the file, and its bytes there."""
        at, size = map(int, self._index[number])
        if not CRC <= size <= self.size - at or not (self.about.compression or size == self.about.chunk_bytes + CRC):
            raise ValueError(MISPLACED)
        return at, size

    def _decoded(self, at: int, size: int, rows: np.ndarray) -> int:
        assert self.about.compression is not None
        encoded = np.empty(size, dtype=np.uint8)
        if self._file.read_at(at, [encoded.data]) != size:
            raise ValueError(DIFFERENT)
        encoded, crc = encoded[:-CRC], encoded[-CRC:]
        if crc32c(encoded) != int.from_bytes(crc.tobytes(), "little"):
            raise ValueError(DIFFERENT)
        whole = rows if rows.nbytes == self.about.chunk_bytes else np.empty(self.about.chunk_bytes, dtype=np.uint8)
        DECODERS[self.about.compression](encoded, whole)
        if whole is not rows:
            rows[...] = whole[: rows.nbytes].view(rows.dtype).reshape(rows.shape)
        return crc32c(rows)

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """Numbers start .. stop - 1 of an array that has one file and one axis."""
        chunk, found = self.about.chunk_rows, np.empty(stop - start, dtype=self.about.dtype)
        for number in range(start // chunk, -(-stop // chunk) if start < stop else 0):
            first, last = number * chunk, min((number + 1) * chunk, self.about.shape[0])
            if start <= first and last <= stop:
                self.read(number, found[first - start : last - start])
            else:
                whole = np.empty(last - first, dtype=self.about.dtype)
                self.read(number, whole)
                some = slice(max(start, first), min(stop, last))
                found[some.start - start : some.stop - start] = whole[some.start - first : some.stop - first]
        return found


def compared(rows: np.ndarray, padding: bytearray | np.ndarray, crc: bytearray | np.ndarray) -> int:
    """crc32c of a chunk's rows, when that of all of it agrees with the one behind it. Raises ValueError."""
    own = crc32c(rows)
    if (crc32c(padding, own) if len(padding) else own) != int.from_bytes(bytes(crc), "little"):
        raise ValueError(DIFFERENT)
    return own
