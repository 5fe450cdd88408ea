"""Reads the chunks of a hook or an index, each compared with the checksum it was published with."""

import threading
from collections import OrderedDict
from functools import cached_property
from typing import NoReturn

import numpy as np

from pipeline.activations.layout import SPARSE_FILES, STORE, sums_file
from pipeline.activations.mapped import MappedFiles, supported
from pipeline.activations.shards import CRC, Described, Shard, compared
from pipeline.activations.sums import Block, Sparse, checksum, unpacked
from pipeline.artifacts.manifest import DIFFERENT, Artifact
from pipeline.artifacts.storage import Folder, said

OPEN_FILES = 32
"""Files of an array that are kept open."""


class Chunks:
    """The chunks of one array of a published store, `chunk_rows` rows each. Threads may read them at the same time."""

    def __init__(self, artifact: Artifact, name: str, rows: int, shard_rows: int, chunk_rows: int, width: int | None) -> None:
        """`width` is that of a sparse hook, else None."""
        self.artifact, self.name, self.rows = artifact, name, rows
        self.shard_rows, self.chunk_rows, self.width = shard_rows, chunk_rows, width
        self.per_shard = shard_rows // chunk_rows
        self._published: dict[int, np.ndarray] = {}
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._faults: tuple[type[Exception], ...] = (ValueError, RuntimeError, LookupError, *artifact.storage.faults)
        if width is None:
            self._dense = Described.of(artifact.content(f"{STORE}/{name}/zarr.json"))

    def __len__(self) -> int:
        return -(-self.rows // self.chunk_rows)

    def span(self, chunk: int) -> tuple[int, int]:
        """Rows of a chunk: the first, and one after the last."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.rows)

    def read(self, chunk: int) -> Block:
        """The rows of a chunk, as stored. Raises DamagedArtifact; UserError when the storage fails and no damage is found."""
        if self.width is not None:
            return self._sparse(chunk)
        start, stop = self.span(chunk)
        rows = np.empty((stop - start, *self._dense.shape[1:]), dtype=self._dense.dtype)
        self.read_into(chunk, rows)
        return rows

    def read_into(self, chunk: int, rows: np.ndarray) -> None:
        """The same of a dense array, into memory that is there; it must be contiguous. Raises the same."""
        shard, number = divmod(chunk, self.per_shard)
        published = self._checksums(shard)
        try:
            found = self._opened(self._files(shard)[0], self._dense).read(number, rows)
        except self._faults as error:
            self._faulty(chunk, error)
        if found != published[number]:
            self._faulty(chunk, ValueError(DIFFERENT))

    @cached_property
    def mappable(self) -> bool:
        """Whether chunks can be used where they lie: dense, not compressed, on a disk of this machine's."""
        return self.width is None and not self._dense.compression and isinstance(self.artifact.storage, Folder) and supported()

    def room(self) -> MappedFiles:
        """Room to map all shards in."""
        names = (self._files(shard)[0] for shard in range(-(-self.rows // self.shard_rows)))
        return MappedFiles([self.artifact.files[name]["size"] for name in names])

    def map_into(self, chunks: list[int], files: MappedFiles) -> list[int]:
        """Brings chunks of one shard into `files`, from `room`, and says at which byte of them each begins. Raises as `read`."""
        shard, whole = chunks[0] // self.per_shard, self._dense.chunk_bytes
        published = self._checksums(shard)
        begins = []
        for chunk in chunks:
            number, (start, stop) = chunk % self.per_shard, self.span(chunk)
            try:
                if shard not in files.chunks:
                    opened = self._opened(self._files(shard)[0], self._dense)
                    files.chunks[shard] = opened.map_into(files, shard, len(published))
                begins.append(files.chunks[shard][number])
                content = files.populate(begins[-1], whole + CRC)
                rows = (stop - start) * whole // self.chunk_rows
                found = compared(content[:rows], content[rows:whole], content[whole:])
            except self._faults as error:
                self._faulty(chunk, error)
            if found != published[number]:
                self._faulty(chunk, ValueError(DIFFERENT))
        return begins

    def stored(self, shard: int) -> np.ndarray:
        """How many numbers each chunk of a shard of a sparse hook holds, int64, without reading them. Raises the same."""
        first = shard * self.per_shard
        self._checksums(shard)
        try:
            pointers = self._part(shard, "pointers").numbers(0, min(self.shard_rows, self.rows - shard * self.shard_rows) + 1)
        except self._faults as error:
            self._faulty(first, error)
        return np.diff(np.append(pointers[: -1 : self.chunk_rows], pointers[-1]))

    def _sparse(self, chunk: int) -> Sparse:
        assert self.width is not None
        shard = chunk // self.per_shard
        published = self._checksums(shard)[chunk % self.per_shard]
        start, stop = (row - shard * self.shard_rows for row in self.span(chunk))
        try:
            pointers = self._part(shard, "pointers").numbers(start, stop + 1)
            first, last = int(pointers[0]), int(pointers[-1])
            values, indices = (self._part(shard, part).numbers(first, last) for part in ("values", "indices"))
            rows = Sparse(values, indices, pointers - first, self.width)
        except self._faults as error:
            self._faulty(chunk, error)
        if checksum(rows) != published:
            self._faulty(chunk, ValueError(DIFFERENT))
        return rows

    def _part(self, shard: int, part: str) -> Shard:
        """One of the arrays of a shard of a sparse hook."""
        return self._opened(f"{STORE}/{self.name}/{shard}/{part}/c/0", None)

    def _opened(self, name: str, about: Described | None) -> Shard:
        """A file; it stays open while it is among the last that were asked for."""
        with self._lock:
            if name not in self._open:
                about = about or Described.of(self.artifact.content(name.replace("/c/0", "/zarr.json")))
                size = self.artifact.files[name]["size"] if name in self.artifact.files else 0
                self._open[name] = Shard(self.artifact.storage, name, size, about)
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return self._open[name]

    def _checksums(self, shard: int) -> np.ndarray:
        """Of its chunks, as published; the sizes of its files are compared when it is first asked for."""
        with self._lock:
            if shard not in self._published:
                content = self.artifact.content(sums_file(shard))
                for name in self._files(shard):
                    self.artifact.check_size(name)
                self._published[shard] = unpacked(content)[0][f"{self.name}.crc32c"]
            return self._published[shard]

    def _files(self, shard: int) -> list[str]:
        """Files of the artifact that hold a shard of this array."""
        if self.width is None:
            return [f"{STORE}/{self.name}/c/{shard}" + "/0" * (len(self._dense.shape) - 1)]
        return [name for file in SPARSE_FILES if (name := f"{STORE}/{self.name}/{shard}/{file}") in self.artifact.files]

    def _faulty(self, chunk: int, error: Exception) -> NoReturn:
        """Raises what is the matter with a chunk that could not be read, or is not the one that was published."""
        start, stop = self.span(chunk)
        rows = f"rows {start}-{stop - 1} of {self.name}"
        for name in self._files(chunk // self.per_shard):
            if fault := self.artifact.fault(name):
                # what befell the whole file is told of all its rows
                self.artifact.damaged(name, fault, rows if fault == DIFFERENT else None)
        if isinstance(error, self.artifact.storage.faults):
            self.artifact.unread(name, error, rows)
        self.artifact.damaged(name, said(error), rows)
