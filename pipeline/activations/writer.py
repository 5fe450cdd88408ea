"""Writes the shards of a store, each whole or not at all, and knows which are written (docs/activation-store.md, section 7)."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr

from pipeline.activations.direct import Written, write_shard
from pipeline.activations.layout import SINKS, SPARSE_CHUNK, STORE, Layout, array, documents, outer_file, put, sums_file
from pipeline.activations.sums import Arrays, Block, Sparse, checksums, packed, squares, sums, unpacked
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.storage import Folder, Storage
from pipeline.console import say

READERS = 2
"""Files that are hashed at the same time."""


class ShardWriter:
    """Writes shards under a digest of everything that decides their bytes.

    `above` says from which norm on a row of a hook is flagged (None: none is); `outer` of which hooks sums of outer products are kept.
    """

    def __init__(self, storage: Storage, layout: Layout, digest: str, above: dict[str, float | None], outer: Iterable[str]) -> None:
        self.storage, self.layout, self.digest, self.above, self.outer = storage, layout, digest, above, set(outer)
        self.hashing = ThreadPoolExecutor(1)

    def start(self) -> None:
        """Writes what describes the arrays. Raises UserError when the disk is full."""
        try:
            put(self.storage, documents(self.layout))
        except self.storage.faults as error:
            raise UserError(f"{self.storage.where(STORE)}: {_said(error)}") from None
        self.zarr = self.storage.zarr(STORE)

    def written(self, shards: Iterable[int]) -> list[bool]:
        """Which shards are written and undamaged; a damaged one is told of."""
        with ThreadPoolExecutor(READERS) as threads:
            return list(threads.map(self._written, shards))

    def _written(self, shard: int) -> bool:
        try:
            arrays_about = read_sums(self.storage, self.layout, shard)
        except FileNotFoundError:
            return False
        except DamagedArtifact as error:
            say(f"{error}; made again")
            return False
        if arrays_about[1]["digest"] != self.digest:
            return False
        if fault := fault_of(self.storage, arrays_about[1]["files"]):
            say(f"{fault}; made again")
            return False
        return True

    def write(self, shard: int, columns: dict[str, Block]) -> None:
        """Writes one shard: hooks in the dtype they are stored in, and the index. Raises UserError where a number does not fit, and when
        the disk is full."""
        start, stop = self.layout.span(shard)
        found, flags = self._sums(columns)
        columns = {**columns, **flags}
        try:
            self.storage.remove(sums_file(shard))
            for name in self.layout.files(shard):
                self.storage.remove(name)
            known: dict[str, Written] = {}
            for name, rows in columns.items():
                chunk = self.layout.chunk_rows.get(name, self.layout.chunk_rows["token"])
                if isinstance(rows, Sparse):
                    self._write_sparse(name, shard, rows)
                elif isinstance(self.storage, Folder) and self.layout.compression == "none":
                    file = f"{STORE}/{name}/c/{shard}" + "/0" * (rows.ndim - 1)
                    known[file] = write_shard(self.storage.folder / file, rows, chunk, self.layout.shard_rows, self.hashing)
                    found[f"{name}.crc32c"] = known[file].crc32c
                    continue
                else:
                    zarr.open_array(self.zarr, path=name, mode="r+")[start:stop] = rows
                found[f"{name}.crc32c"] = checksums(rows, chunk)
            about = {"digest": self.digest, "rows": [start, stop]}
            outer = {name: found.pop(name) for name in list(found) if name.endswith(".outer")}
            if outer:
                self.storage.write(outer_file(shard), packed(outer, about))
            names = {**self.layout.files(shard), **({outer_file(shard): "sums"} if outer else {})}
            files = {name: self._entry(name, array_of, start, stop, known.get(name)) for name, array_of in names.items()}
            self.storage.write(sums_file(shard), packed(found, {**about, "files": {name: one for name, one in files.items() if one}}))
        except self.storage.faults as error:
            raise UserError(
                f"{self.storage.where(STORE)}: {_said(error)}, at rows {start:,}-{stop - 1:,}; the shards before stand, and the "
                "harvest goes on there when it is started again"
            ) from None

    def _entry(self, name: str, about: str, start: int, stop: int, known: Written | None) -> dict[str, Any] | None:
        said = {"about": f"rows {start}-{stop - 1} of {about}"}
        if known:
            return {"size": known.size, "sha256": known.sha256, **said}
        size = self.storage.size(name)
        if size is None:
            return None
        return {"size": size, "sha256": self.storage.sha256(name), **said}

    def _sums(self, columns: dict[str, Block]) -> tuple[Arrays, dict[str, Block]]:
        """Sums of every hook, and which rows are flagged."""
        layout = self.layout
        found: Arrays = {}
        flags: dict[str, Block] = {}
        for hook in layout.widths:
            norms = squares(columns[hook], layout.dtype)
            if not np.isfinite(norms).all():
                self._name_fault(hook, columns, int(np.flatnonzero(~np.isfinite(norms))[0]))
            above = self.above[hook]
            flagged = np.zeros(len(norms), dtype=bool) if above is None else norms > above**2
            if layout.flagged:
                flags[f"{SINKS}/{hook}"] = flagged
            rows, kept = columns[hook], ~flagged if flagged.any() else None
            own = sums(rows, layout.dtype, kept, hook in self.outer)
            own["square"] = norms.sum() if kept is None else norms[kept].sum()
            own["rows"] = np.array(len(norms) - int(flagged.sum()))
            own["stored"] = np.array(len(rows.values) if isinstance(rows, Sparse) else rows.size)
            found |= {f"{hook}.{name}": np.asarray(value) for name, value in own.items()}
        return found, flags

    def _name_fault(self, hook: str, columns: dict[str, Block], row: int) -> None:
        sequence, position = (np.asarray(columns[name])[row] for name in ("sequence", "position"))
        at = f"sequence {sequence}, position {position}"
        most = {"float16": "65,504", "bfloat16": "3.4e38"}.get(self.layout.dtype)
        what = f"not finite, or does not fit {self.layout.dtype} (at most {most})" if most else "not finite"
        raise UserError(f"hook {hook}: a number is {what}, at {at}")

    def _write_sparse(self, hook: str, shard: int, rows: Sparse) -> None:
        group = zarr.open_group(self.zarr, mode="r+").create_group(f"{hook}/{shard}", overwrite=True)
        for part in ("values", "indices", "pointers"):
            values = getattr(rows, part)
            chunk = min(SPARSE_CHUNK, max(1, len(values)))
            dtype = None if part == "values" else values.dtype.str
            made = array(group, part, values.shape, self.layout, (chunk,), (max(1, -(-len(values) // chunk)) * chunk,), dtype)
            if len(values):
                made[:] = values


def _said(error: Exception) -> str:
    """An error of a disk or of an object store, on one line."""
    return (getattr(error, "strerror", None) or str(error)).partition("\n")[0]


def read_sums(storage: Storage, layout: Layout, shard: int) -> tuple[Arrays, dict[str, Any]]:
    """A shard's sums, and what its file says of it. Raises FileNotFoundError, DamagedArtifact."""
    try:
        arrays, about = unpacked(storage.read(sums_file(shard)))
        outer = unpacked(storage.read(outer_file(shard)))[0] if outer_file(shard) in about["files"] else {}
        return {**arrays, **outer}, about
    except ValueError as error:
        start, stop = layout.span(shard)
        raise DamagedArtifact(f"{storage.where(sums_file(shard))} (sums of rows {start}-{stop - 1}): {error}") from None


def fault_of(storage: Storage, files: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with a shard's files, if anything."""
    for name, entry in files.items():
        size = storage.size(name)
        if size is None:
            return f"{storage.where(name)} ({entry['about']}): is missing"
        if size != entry["size"] or storage.sha256(name) != entry["sha256"]:
            return f"{storage.where(name)} ({entry['about']}): the bytes differ from those written"
    return None
