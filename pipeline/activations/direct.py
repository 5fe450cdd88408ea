"""Writes the shard of an array as Zarr's sharding codec would, byte for byte, where nothing is compressed and it lies on a disk.

Zarr encodes a whole shard in memory, several times its size, writes it, and leaves it to be read again for its hash. Here the chunks go
from where they are into the file, and are hashed on the way (benchmarks/compression.py).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c
from xxhash import xxh3_128

ABSENT = 2**64 - 1
"""Offset and size, in a shard's index, of a chunk that lies behind the last row."""


@dataclass(frozen=True)
class Written:
    """A shard that is written."""

    size: int
    xxh3: str
    """Of the file, hex."""
    chunks: np.ndarray
    """crc32c of the rows of each chunk, uint32."""


def write_shard(path: Path, rows: np.ndarray, chunk_rows: int, shard_rows: int) -> Written:
    """Writes rows, which must be contiguous. Raises OSError."""
    whole = chunk_rows * rows.nbytes // len(rows)
    index = np.full((shard_rows // chunk_rows, 2), ABSENT, dtype="<u8")
    found, digest = [], xxh3_128()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:

        def put(content: memoryview | bytes) -> None:
            digest.update(content)
            file.write(content)

        for number, start in enumerate(range(0, len(rows), chunk_rows)):
            some = rows[start : start + chunk_rows]
            padding = bytes(whole - some.nbytes)
            own = crc32c(some)
            found.append(own)
            put(some.data.cast("B"))
            put(padding + crc32c(padding, own).to_bytes(4, "little"))
            index[number] = number * (whole + 4), whole + 4
        put(index.tobytes())
        put(crc32c(index).to_bytes(4, "little"))
        return Written(file.tell(), digest.hexdigest(), np.array(found, dtype=np.uint32))
