"""Rows in a chunk where a study names none: about 1 MiB of a hook, in a number that divides the rows of a shard."""

from collections.abc import Mapping

CHUNK_BYTES = 2**20
INDEX_CHUNK = 2**14
"""Rows in a chunk of an array that has one number per row."""
SPARSE_SHARE = 0.25
"""What a sparse hook is taken to need of the memory and disk that it would need dense."""
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a number of each dtype as stored."""
LEAST = 4
"""A chunk has at least one part in so many of the rows that are wanted: reading many small ones is slow."""


def row_bytes(width: int, dtype: str, sparse: bool) -> float:
    """Of a hook on the disk, about."""
    return width * BYTES[dtype] * (SPARSE_SHARE if sparse else 1)


def power(wanted: float) -> int:
    """The largest power of two up to `wanted`, at least 1."""
    return 2 ** max(0, int(wanted).bit_length() - 1)


def wanted(size: float) -> int:
    """Rows of `size` bytes that a chunk should have."""
    return power(CHUNK_BYTES / size)


def dividing(shard: int, most: int) -> int:
    """The largest number up to `most` that divides a shard's rows."""
    return next(size for size in range(min(most, shard), 0, -1) if shard % size == 0)


def undivided(shard: int, chunks: Mapping[str, int]) -> str | None:
    """Why a shard has no good chunks, if so; `chunks` says of each array how many rows are wanted."""
    for name, most in chunks.items():
        if not _divides(shard, most):
            near = next(
                one for off in range(shard) for one in (shard - off, shard + off) if all(_divides(one, most) for most in chunks.values())
            )
            return (
                f"{shard:,} rows cannot be cut into chunks of about {min(most, shard):,}, which suit {name}: the largest number up to that "
                f"which divides them is {dividing(shard, most):,}; the nearest that will do is {near}, or give chunk_rows"
            )
    return None


def _divides(shard: int, most: int) -> bool:
    return dividing(shard, most) * LEAST >= min(most, shard)
