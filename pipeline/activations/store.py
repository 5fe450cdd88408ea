"""The activation store: a Zarr v3 group with one (rows, width) array per hook and a row index beside them.

- chunked and sharded along rows only; little-endian; a crc32c per chunk; no chunk left out because it is all zero
- index arrays: `token` (int32, -1 in tables), `sequence` (int64), `position` (int32)
- group attributes under `saeflow`: identity of model and dataset, hooks, row count, mean and mean squared norm per hook
- sealed by the artifact's manifest, which holds size and sha256 of every file; a shard is checked when it is first read
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from pipeline.artifacts.errors import DamagedArtifact
from pipeline.artifacts.manifest import Artifact, repair

FORMAT = 1
STORE = "store.zarr"
PART = "harvest.json"
"""What a harvest job leaves for the job that seals: files with hashes, and sums."""
zarr.config.set({"array.write_empty_chunks": True})  # a chunk of zeros that is left out would read as valid when a file is lost
INDEX = {"token": "int32", "sequence": "int64", "position": "int32"}


def create(folder: Path, hooks: dict[str, int], rows: int, chunk_rows: int, shard_rows: int) -> zarr.Group:
    """An empty store for `rows` rows of hooks with these widths."""
    group = zarr.create_group(folder / STORE, zarr_format=3)
    for name, width in hooks.items():
        _array(group, name, (rows, width), "float32", (chunk_rows, width), (shard_rows, width))
    for name, dtype in INDEX.items():
        _array(group, name, (rows,), dtype, (chunk_rows,), (shard_rows,))
    return group


def _array(group: zarr.Group, name: str, shape: tuple, dtype: str, chunks: tuple, shards: tuple) -> None:
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
    )


def set_attributes(folder: Path, attributes: dict[str, Any]) -> None:
    """Group attributes, under the key `saeflow`."""
    zarr.open_group(folder / STORE, mode="r+").update_attributes({"saeflow": {"format": FORMAT, **attributes}})


def shard_file(name: str, number: int, dimensions: int) -> str:
    """Name in the artifact of an array's shard."""
    return f"{STORE}/{name}/c/{number}" + "/0" * (dimensions - 1)


class Column:
    """One array of a store: the rows of a hook, or of an index."""

    def __init__(self, artifact: Artifact, name: str) -> None:
        self._artifact, self.name = artifact, name
        artifact.file(f"{STORE}/{name}/zarr.json")
        array = zarr.open_array(artifact.folder / STORE / name, mode="r")
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.shard_rows = array.shards[0] if array.shards else array.chunks[0]
        self.chunk_rows = array.chunks[0]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1. Raises DamagedArtifact, naming the shard and its rows, when one is not as published."""
        stop = min(stop, len(self))
        for shard in range(start // self.shard_rows, -(-stop // self.shard_rows)):
            self._artifact.file(shard_file(self.name, shard, len(self.shape)))
        try:
            return np.asarray(self._array[start:stop])
        except ValueError as error:
            where = f"{self._artifact.folder / STORE / self.name}: rows {start}-{stop - 1}"
            raise DamagedArtifact(f"{where}: {error}; repair: {repair(self._artifact.folder / 'manifest.json')}") from None

    def batches(self, size: int, rows: int | None = None) -> Iterator[np.ndarray]:
        """The first `rows` rows (all when None) in order, `size` at a time; a chunk is read once where `size` divides it."""
        rows = len(self) if rows is None else min(rows, len(self))
        step = max(1, self.chunk_rows // size) * size
        for start in range(0, rows, step):
            block = self.read(start, min(start + step, rows))
            for begin in range(0, len(block), size):
                yield block[begin : begin + size]


class ActivationStore:
    """A sealed store, opened by its manifest."""

    def __init__(self, manifest: Path) -> None:
        self.artifact = Artifact.open(manifest)
        group = self.artifact.file(f"{STORE}/zarr.json")
        self.attributes: dict[str, Any] = json.loads(group.read_text())["attributes"]["saeflow"]
        if self.attributes["format"] != FORMAT:
            raise DamagedArtifact(f"{manifest}: store format {self.attributes['format']}, and this version reads {FORMAT}")

    def __len__(self) -> int:
        return self.attributes["rows"]

    def __getitem__(self, name: str) -> Column:
        """Rows of a hook, or of an index (token, sequence, position)."""
        return Column(self.artifact, name)

    def mean(self, hook: str) -> np.ndarray:
        """Mean of a hook over all rows (width,), float64."""
        return np.array(self.attributes["hooks"][hook]["mean"])

    def mean_squared_norm(self, hook: str) -> float:
        """Mean over rows of the squared norm."""
        return self.attributes["hooks"][hook]["mean_squared_norm"]

    def variance(self, hook: str) -> float:
        """Mean over rows of the squared distance from the mean; 0 where rounding alone would leave something."""
        square = self.mean_squared_norm(hook)
        variance = square - float(np.square(self.mean(hook)).sum())
        return variance if variance > 1e-12 * square else 0.0
