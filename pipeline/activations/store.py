"""A published activation store, opened by its manifest (docs/activation-store.md)."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.activations.chunks import Chunks
from pipeline.activations.layout import FORMAT, INDEX, SINKS, STATISTICS, STORE
from pipeline.activations.sums import Sparse, widened
from pipeline.artifacts.errors import DamagedArtifact
from pipeline.artifacts.manifest import Artifact, repair


class Column:
    """The rows of a hook, as float32, or of an index."""

    def __init__(self, store: "ActivationStore", name: str) -> None:
        about = store.attributes
        if name not in (*about["hooks"], *INDEX) and not name.startswith(f"{SINKS}/"):
            raise KeyError(f"no '{name}' is stored; there are {', '.join([*about['hooks'], *INDEX])}")
        self.store, self.name = store, name
        self.hook: dict[str, Any] | None = about["hooks"].get(name)
        self.dtype: str = about["dtype"] if self.hook else INDEX.get(name, "bool")
        """What numbers are stored as: float32, float16, bfloat16; of an index its type."""
        self.sparse = bool(self.hook and self.hook["storage"] == "sparse")
        self.shape: tuple[int, ...] = (len(store), self.hook["width"]) if self.hook else (len(store),)
        self.shard_rows = about["shard_rows"]
        self.chunk_rows = self.hook["chunk_rows"] if self.hook else about["index_chunk_rows"]
        width = self.hook["width"] if self.hook and self.sparse else None
        self.chunks = Chunks(store.artifact, name, len(store), self.shard_rows, self.chunk_rows, width)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, flagged ones as well. Raises DamagedArtifact, naming the file and the rows of the chunk that is not as
        published."""
        start, stop = min(start, len(self)), min(stop, len(self))
        found = []
        for chunk in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
            first = chunk * self.chunk_rows
            rows = self.chunks.read(chunk)[max(0, start - first) : stop - first]
            dense = rows.dense(rows.values.dtype) if isinstance(rows, Sparse) else rows
            found.append(widened(dense, self.dtype) if self.hook else dense)
        if not found:
            return np.empty((0, *self.shape[1:]), dtype=np.float32 if self.hook else self.dtype)
        return found[0] if len(found) == 1 else np.concatenate(found)

    @cached_property
    def _sinks(self) -> "Column | None":
        about = self.hook and self.hook[SINKS]
        return Column(self.store, f"{SINKS}/{self.name}") if about and about["rows"] else None

    def kept(self, start: int, stop: int) -> np.ndarray | None:
        """Which of rows start .. stop - 1 are not flagged as attention sinks, bool; None when all rows of the hook are kept."""
        return None if self._sinks is None else ~self._sinks.read(start, stop)

    def kept_rows(self) -> int:
        """Rows that are not flagged."""
        return len(self) - (self.hook[SINKS]["rows"] if self.hook and self.hook[SINKS] else 0)

    def batches(self, size: int, rows: int | None = None) -> Iterator[np.ndarray]:
        """The first `rows` rows (all when None) in order, those not flagged, up to `size` at a time; a chunk is read once where `size`
        divides it."""
        rows = len(self) if rows is None else min(rows, len(self))
        step = max(1, self.chunk_rows // size) * size
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            block, kept = self.read(start, stop), self.kept(start, stop)
            for begin in range(0, len(block), size):
                some = slice(begin, begin + size)
                found = block[some] if kept is None else block[some][kept[some]]
                if len(found):
                    yield found


class ActivationStore:
    """A published store."""

    def __init__(self, manifest: Path | str) -> None:
        """`manifest` is a path, or an address such as s3://bucket/prefix/manifest.json. Raises DamagedArtifact."""
        self.artifact = Artifact.open(manifest)
        group = f"{STORE}/zarr.json"
        if group not in self.artifact.files:
            raise DamagedArtifact(f"{manifest}: not of an activation store, or of one of format 1; repair: {repair(manifest)}")
        about = json.loads(self.artifact.content(group))["attributes"]["saeflow"]
        if about["format"] != FORMAT:
            raise DamagedArtifact(
                f"{manifest}: the store has format {about['format']}, and this version reads {FORMAT}; repair: {repair(manifest)}"
            )
        self.attributes: dict[str, Any] = about

    def __len__(self) -> int:
        return self.attributes["rows"]

    def __getitem__(self, name: str) -> Column:
        """Rows of a hook, or of an index (token, sequence, position)."""
        return Column(self, name)

    @property
    def hooks(self) -> list[str]:
        return list(self.attributes["hooks"])

    def mean(self, hook: str) -> np.ndarray:
        """Mean of a hook over the rows that are not flagged (width,), float64."""
        return self._statistic(hook, "mean")

    def covariance(self, hook: str) -> np.ndarray:
        """Covariance over the same rows (width, width), float64. Raises KeyError where the study did not ask for it."""
        return self._statistic(hook, "covariance")

    def _statistic(self, hook: str, name: str) -> np.ndarray:
        path = f"{STATISTICS}/{hook}/{name}"
        files = [file for file in self.artifact.files if file.startswith(f"{STORE}/{path}/")]
        if not files:
            told = f"; there are {', '.join(self.hooks)}" if hook not in self.hooks else "; add it to `covariance` of the activations"
            raise KeyError(f"no {name} of {hook} is stored{told}")
        for file in files:
            self.artifact.content(file)
        return np.asarray(zarr.open_array(self.artifact.storage.zarr(STORE), path=path, mode="r")[...])

    def mean_squared_norm(self, hook: str) -> float:
        """Mean over the same rows of the squared norm."""
        return self.attributes["hooks"][hook]["mean_squared_norm"]

    def variance(self, hook: str) -> float:
        """Mean over the same rows of the squared distance from the mean; 0 where rounding alone would leave something."""
        return self.attributes["hooks"][hook]["variance"]
