"""What a shard says of itself: float64 sums of its rows, and a checksum of each of its chunks. Sums merge in the order of shards."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from crc32c import crc32c
from safetensors import SafetensorError
from safetensors.numpy import load, save

BLOCK_BYTES, OUTER_ROWS = 2**20, 4096
"""What is taken to float64 at a time: little enough for the processor's cache, and rows enough where products are summed."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sparse:
    """Rows of which only what is not zero is kept: row i is `values[pointers[i]:pointers[i + 1]]` at `indices`."""

    values: np.ndarray
    indices: np.ndarray
    pointers: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.pointers) - 1

    def __getitem__(self, rows: slice) -> "Sparse":
        start, stop, _ = rows.indices(len(self))
        first, last = int(self.pointers[start]), int(self.pointers[stop])
        return Sparse(self.values[first:last], self.indices[first:last], self.pointers[start : stop + 1] - self.pointers[start], self.width)

    def dense(self, dtype: Any = np.float32) -> np.ndarray:
        """All numbers (rows, width)."""
        found = np.zeros((len(self), self.width), dtype=dtype)
        found[np.repeat(np.arange(len(self)), np.diff(self.pointers)), self.indices] = self.values
        return found


Block = np.ndarray | Sparse


def checksum(rows: Block) -> int:
    """crc32c of a chunk's rows as a reader sees them; of a sparse one that of its rows' lengths, indices and values."""
    if not isinstance(rows, Sparse):
        return crc32c(rows)
    found = crc32c(np.diff(rows.pointers).astype("<i8"))
    for part in (rows.indices, rows.values):
        found = crc32c(part, found)
    return found


def checksums(rows: Block, chunk: int) -> np.ndarray:
    """Of each chunk of `chunk` rows, uint32."""
    return np.array([checksum(rows[start : start + chunk]) for start in range(0, len(rows), chunk)], dtype=np.uint32)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of a hook as float32, from what is stored."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _step(rows: Block) -> int:
    """Rows that are summed at a time."""
    return max(1, BLOCK_BYTES // (8 * (rows.width if isinstance(rows, Sparse) else rows.shape[1])))


def summed(rows: Block, dtype: str, above: float | None, outer: bool) -> tuple[np.ndarray, Arrays]:
    """Squared norm of each row (rows,), float64, not finite where a number of the row is not; and sums over the rows whose norm is not over
    `above`: `sum` (width,) and, if asked for, `outer` (width, width)."""
    width = rows.width if isinstance(rows, Sparse) else rows.shape[1]
    norms, total, product = np.empty(len(rows)), np.zeros(width), np.zeros((width, width)) if outer else None
    step = OUTER_ROWS if outer else _step(rows)
    held = np.empty((0 if isinstance(rows, Sparse) else min(step, len(rows)), width))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        if isinstance(some, Sparse):
            values, lengths = widened(some.values, dtype).astype(np.float64), np.diff(some.pointers)
            squares = np.bincount(np.repeat(np.arange(len(some)), lengths), np.square(values), len(some))
        else:
            exact = held[: len(some)]
            np.copyto(exact, widened(some, dtype))
            squares = np.einsum("ij,ij->i", exact, exact)
        norms[start : start + step] = squares
        kept = None if above is None or not (flagged := squares > above**2).any() else ~flagged
        if isinstance(some, Sparse) and product is None:
            total += np.bincount(some.indices, values if kept is None else values * np.repeat(kept, lengths), width)
            continue
        if isinstance(some, Sparse):
            exact = widened(some.dense(some.values.dtype), dtype).astype(np.float64)
        exact = exact if kept is None else exact[kept]
        with np.errstate(invalid="ignore"):  # of numbers that are not finite, which whoever asks looks for
            total += exact.sum(0)
        if product is not None:
            import torch  # sealing needs none of it

            some_exact = torch.from_numpy(exact)  # torch's threads are those of the spec, numpy's are not
            product += (some_exact.T @ some_exact).numpy()
    return norms, {"sum": total} if product is None else {"sum": total, "outer": product}


def merged(shards: Iterable[Arrays]) -> Arrays:
    """The sums of several shards, added in their order; checksums are left out."""
    found: Arrays = {}
    for shard in shards:
        for name, value in shard.items():
            if not name.endswith(".crc32c"):
                # In place: outer products of a wide hook take gigabytes.
                found[name] = np.add(found[name], value, out=found[name]) if name in found else np.array(value)
    return found


def statistics(sums: Arrays, hook: str) -> Arrays:
    """Mean, mean squared norm, variance (its trace) and, where there are sums for it, covariance of a hook, from merged sums."""
    rows = float(sums[f"{hook}.rows"])
    mean = sums[f"{hook}.sum"] / max(rows, 1)
    square = sums[f"{hook}.square"] / max(rows, 1)
    variance = float(square) - float(np.square(mean).sum())
    # What rounding alone would leave is no variance.
    found = {"mean": mean, "mean_squared_norm": square, "variance": np.array(variance if variance > 1e-12 * float(square) else 0.0)}
    if f"{hook}.outer" in sums:
        found["covariance"] = sums[f"{hook}.outer"] / max(rows, 1) - np.outer(mean, mean)
    return found


def packed(arrays: Arrays, about: Mapping[str, Any]) -> bytes:
    """A shard's sums, as their file holds them. Nothing else vouches for them until the store is sealed, so they carry their own sha256."""
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    said = json.dumps(about, sort_keys=True)
    # Under one key: safetensors writes several in an order that is never twice the same.
    return save(arrays, {"about": f"{_digest(arrays, said)} {said}"})


def unpacked(content: bytes) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and what is said of them. Raises ValueError when it is no such file, or not as it was packed."""
    length = int.from_bytes(content[:8], "little")
    try:
        digest, _, said = json.loads(content[8 : 8 + length])["__metadata__"]["about"].partition(" ")
        arrays = load(content)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"not readable ({error})") from None
    if _digest(arrays, said) != digest:
        raise ValueError("the bytes differ from those written")
    return arrays, json.loads(said)


def _digest(arrays: Arrays, said: str) -> str:
    """Hex sha256 of names, types, shapes and numbers, and of what is said of them."""
    found = hashlib.sha256(said.encode())
    for name, value in sorted(arrays.items()):
        found.update(f"{name} {value.dtype.str} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()
