"""Writes the shards of a store, each whole or not at all, and knows which are written (docs/activation-store.md, section 7)."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from xxhash import xxh3_128_hexdigest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.activations.direct import write_shard
from pipeline.activations.layout import SINKS, SPARSE_CHUNK, STORE, Layout, array, documents, outer_file, put, sums_file
from pipeline.activations.sums import Arrays, Block, Sparse, checksums, packed, summed, unpacked
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.storage import Folder, Storage, said, unreadable
from pipeline.console import say

HASHED = 2
"""Shards whose files are hashed at the same time."""


class Unfit(UserError):
    """A number that cannot be stored."""


class ShardWriter:
    """Writes shards under a digest of everything that decides their bytes.

    `above` says from which norm on a row of a hook is flagged (None: none is); `outer` of which hooks sums of outer products are kept.
    """

    def __init__(self, storage: Storage, layout: Layout, digest: str, above: dict[str, float | None], outer: Iterable[str]) -> None:
        self.storage, self.layout, self.digest, self.above, self.outer = storage, layout, digest, above, set(outer)
        self.documents = documents(layout)

    def start(self) -> None:
        """Writes what describes the arrays. Raises UserError when the disk is full."""
        try:
            put(self.storage, self.documents)
        except self.storage.faults as error:
            raise UserError(f"{self.storage.where(STORE)}: {said(error)}") from None

    def begun(self, shard: int) -> bool:
        """Whether a shard's sums say that this harvest has written it; its other files are not looked at."""
        try:
            return not self._foreign(_own_sums(self.storage, self.layout, shard)[1])
        except (FileNotFoundError, DamagedArtifact):
            return False

    def written(self, shards: Iterable[int]) -> list[bool]:
        """Which shards are written and undamaged; a damaged one is told of."""
        with ThreadPoolExecutor(HASHED) as threads:
            return list(threads.map(self._written, shards))

    def _written(self, shard: int) -> bool:
        try:
            arrays, about = read_sums(self.storage, self.layout, shard)
        except FileNotFoundError:
            return False
        except DamagedArtifact as error:
            say(f"{error}; made again")
            return False
        if other := self._foreign(about):
            if about["digest"] == self.digest:
                say(f"{self.storage.where(sums_file(shard))}: {other}; made again")
            return False
        if fault := fault_of(self.storage, self.layout, shard, arrays, about["files"]):
            say(f"{fault}; made again")
            return False
        return True

    def _foreign(self, about: dict[str, Any]) -> str | None:
        return foreign(about, self.digest, self.above)

    def write(self, shard: int, columns: dict[str, Block]) -> None:
        """Writes one shard: hooks in the dtype they are stored in, and the index. Raises UserError where a number does not fit, and when
        the disk is full."""
        start, stop = self.layout.span(shard)
        faults: tuple[type[Exception], ...] = (*self.storage.faults, UserError)
        try:
            with ThreadPoolExecutor(1) as summing:
                # Products are torch's, whose threads are those of this thread alone.
                found = _done(self._sums(columns)) if self.outer else summing.submit(self._sums, columns)
                self._write(shard, columns, found)
        except Unfit:
            raise  # it would be found again
        except faults as error:
            what = str(error) if isinstance(error, UserError) else f"{self.storage.where(STORE)}: {said(error)}"
            raise UserError(
                f"{what}, at rows {start:,}-{stop - 1:,}; the shards before stand, and the harvest goes on there when it is started again"
            ) from None

    def _write(self, shard: int, columns: dict[str, Block], summed: Future) -> None:
        """`summed` gives sums and flags, by the time that hooks and index are written."""
        layout, (start, stop) = self.layout, self.layout.span(shard)
        for name in (sums_file(shard), *layout.files(shard)):
            self.storage.remove(name)
        files: dict[str, Any] = {}
        known = {name: self._array(shard, name, rows, files) for name, rows in columns.items()}
        found, flags = summed.result()
        known |= {name: self._array(shard, name, rows, files) for name, rows in flags.items()}
        found |= {f"{name}.crc32c": crcs for name, crcs in known.items()}
        about = {"digest": self.digest, "rows": [start, stop], "above": self.above}
        outer = {name: found.pop(name) for name in list(found) if name.endswith(".outer")}
        if outer:
            products = packed(outer, about)
            self.storage.write(outer_file(shard), products)
            files[outer_file(shard)] = {
                "size": len(products),
                "xxh3": xxh3_128_hexdigest(products),
                "about": f"rows {start}-{stop - 1} of sums",
            }
        if lacking := _lacking(layout, shard, found, files):
            raise UserError(f"{self.storage.where(lacking)}: was not written")
        self.storage.write(sums_file(shard), packed(found, {**about, "files": files}))

    def _array(self, shard: int, name: str, rows: Block, files: dict[str, Any]) -> np.ndarray:
        """Writes the shard of an array, adds its files to `files`, and gives the checksums of its chunks."""
        layout, (start, stop) = self.layout, self.layout.span(shard)
        chunk, what = layout.chunk_rows.get(name, layout.chunk_rows["token"]), f"rows {start}-{stop - 1} of {name}"
        if isinstance(self.storage, Folder) and layout.compression == "none" and not isinstance(rows, Sparse):
            file = f"{STORE}/{name}/c/{shard}" + "/0" * (rows.ndim - 1)
            known = write_shard(self.storage.folder / file, rows, chunk, layout.shard_rows)
            files[file] = {"size": known.size, "xxh3": known.xxh3, "about": what}
            return known.chunks
        for file, content in self._encoded(name, shard, rows).items():
            self._put(file, content)
            files[file] = {"size": len(content), "xxh3": xxh3_128_hexdigest(content.data), "about": what}
        return checksums(rows, chunk)

    def _encoded(self, name: str, shard: int, rows: Block) -> dict[str, np.ndarray]:
        """The files of a shard of an array, as Zarr encodes them."""
        buffer = default_buffer_prototype().buffer
        memory = MemoryStore({file.removeprefix(f"{STORE}/"): buffer.from_bytes(content) for file, content in self.documents.items()})
        if isinstance(rows, Sparse):
            self._encode_sparse(memory, f"{name}/{shard}", rows)
        else:
            start, stop = self.layout.span(shard)
            zarr.open_array(memory, path=name, mode="r+")[start:stop] = rows
        found = {f"{STORE}/{file}": content for file, content in memory._store_dict.items()}
        return {file: content.as_numpy_array() for file, content in found.items() if file not in self.documents}

    def _encode_sparse(self, memory: MemoryStore, path: str, rows: Sparse) -> None:
        group = zarr.open_group(memory, mode="r+").create_group(path)
        for part in ("values", "indices", "pointers"):
            values = getattr(rows, part)
            chunk = min(SPARSE_CHUNK, max(1, len(values)))
            dtype = None if part == "values" else values.dtype.str
            made = array(group, part, values.shape, self.layout, (chunk,), (max(1, -(-len(values) // chunk)) * chunk,), dtype)
            if len(values):
                made[:] = values

    def _put(self, name: str, content: np.ndarray) -> None:
        """Writes a file of a shard."""
        if isinstance(self.storage, Folder):
            path = self.storage.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.data)  # sealing waits until it is on the disk
        else:
            self.storage.write(name, content.tobytes())

    def _sums(self, columns: dict[str, Block]) -> tuple[Arrays, dict[str, Block]]:
        """Sums of every hook, and which rows are flagged."""
        layout = self.layout
        found: Arrays = {}
        flags: dict[str, Block] = {}
        for hook in layout.widths:
            above = self.above[hook]
            norms, own = summed(rows := columns[hook], layout.dtype, above, hook in self.outer)
            if not np.isfinite(norms).all():
                self._name_fault(hook, columns, int(np.flatnonzero(~np.isfinite(norms))[0]))
            flagged = np.zeros(len(norms), dtype=bool) if above is None else norms > above**2
            if layout.flagged:
                flags[f"{SINKS}/{hook}"] = flagged
            own["square"] = norms[~flagged].sum()
            own["rows"] = np.array(len(norms) - int(flagged.sum()))
            own["stored"] = np.array(len(rows.values) if isinstance(rows, Sparse) else rows.size)
            found |= {f"{hook}.{name}": np.asarray(value) for name, value in own.items()}
        return found, flags

    def _name_fault(self, hook: str, columns: dict[str, Block], row: int) -> None:
        sequence, position = (np.asarray(columns[name])[row] for name in ("sequence", "position"))
        at = f"sequence {sequence}, position {position}"
        most = {"float16": "65,504", "bfloat16": "3.4e38"}.get(self.layout.dtype)
        what = f"not finite, or does not fit {self.layout.dtype} (at most {most})" if most else "not finite"
        raise Unfit(f"hook {hook}: a number is {what}, at {at}")


def _done(value: Any) -> Future:
    done: Future = Future()
    done.set_result(value)
    return done


def foreign(about: Mapping[str, Any], digest: str, above: Mapping[str, float | None]) -> str | None:
    """Why a shard of which its sums say `about` is not of a harvest, if so."""
    if about["digest"] != digest:
        return "of another harvest"
    return None if about["above"] == above else "its rows are flagged by other thresholds, which another processor found"


def read_sums(storage: Storage, layout: Layout, shard: int) -> tuple[Arrays, dict[str, Any]]:
    """A shard's sums, and what its file says of it. Raises FileNotFoundError, DamagedArtifact."""
    arrays, about = _own_sums(storage, layout, shard)
    if outer_file(shard) in about["files"]:
        arrays |= _unpacked(storage, layout, shard, outer_file(shard))[0]
    return arrays, about


def _own_sums(storage: Storage, layout: Layout, shard: int) -> tuple[Arrays, dict[str, Any]]:
    """The same without sums of outer products."""
    return _unpacked(storage, layout, shard, sums_file(shard))


def _unpacked(storage: Storage, layout: Layout, shard: int, name: str) -> tuple[Arrays, dict[str, Any]]:
    faults: tuple[type[Exception], ...] = (ValueError, *storage.faults)
    try:
        return unpacked(storage.read(name))
    except FileNotFoundError:
        raise
    except faults as error:
        start, stop = layout.span(shard)
        problem = str(error) if isinstance(error, ValueError) else unreadable(error)
        raise DamagedArtifact(f"{storage.where(sums_file(shard))} (sums of rows {start}-{stop - 1}): {problem}") from None


def _lacking(layout: Layout, shard: int, sums: Arrays, files: Mapping[str, Any]) -> str | None:
    """A file that a shard ought to have and that is not among `files`."""
    empty: set[str] = set().union(*(layout.empty_files(shard, hook) for hook in layout.sparse if not sums[f"{hook}.stored"]))
    return next((name for name in layout.files(shard) if name not in files and name not in empty), None)


def fault_of(
    storage: Storage, layout: Layout, shard: int, sums: Arrays, files: Mapping[str, dict[str, Any]], sha256: dict[str, str] | None = None
) -> str | None:
    """What is wrong with a shard's files, if anything. Puts the sha256 of each into `sha256`, if given: of the bytes that were checked."""
    if lacking := _lacking(layout, shard, sums, files):
        start, stop = layout.span(shard)
        return f"{storage.where(lacking)} (rows {start}-{stop - 1}): was never written"
    for name, entry in files.items():
        what = f"{storage.where(name)} ({entry['about']})"
        try:
            size = storage.size(name)
            if size is None:
                return f"{what}: is missing"
            differ = f"{what}: the bytes differ from those written"
            if size != entry["size"]:
                return differ
            if sha256 is None:
                found = storage.xxh3(name)
            else:
                found, sha256[name] = storage.hashes(name)
            if found != entry["xxh3"]:
                return differ
        except storage.faults as error:
            return f"{what}: {unreadable(error)}"
    return None
