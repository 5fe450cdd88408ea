"""How a store is laid out: sizes of chunks and shards, arrays and their names (docs/activation-store.md, sections 1 to 3)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.storage import Storage
from pipeline.study.chunk_sizes import INDEX_CHUNK, SPARSE_SHARE, dividing, power, row_bytes, undivided, wanted

FORMAT = 2
STORE = "store.zarr"
INDEX = {"token": "int32", "sequence": "int64", "position": "int32"}
SINKS, STATISTICS = "sinks", "statistics"
SHARDS, LEAST_SHARD, MOST_SHARD = 64, 2**24, 2**28
"""About how many shards the widest hook has, and the bytes that one of them has at least and at most."""
MOST_SHARDS = 2**29
"""Bytes that the shards of all hooks have at most, at the same rows: a job holds two of each."""
MOST_CHUNK = 2**30
"""Bytes of a chunk: compressors and single reads of a file end at 2 GiB."""
SPARSE_CHUNK = 2**18
"""Numbers in a chunk of a sparse hook's arrays."""
COMPRESSED = {"none": 1.0, "zstd": 0.75, "blosc": 0.7}
"""What a hook is taken to need of the disk that it would need uncompressed: the least that was measured (section 10)."""
SPARSE_FILES = ("zarr.json", *(f"{part}/{file}" for part in ("values", "indices", "pointers") for file in ("zarr.json", "c/0")))
"""Of a shard of a sparse hook; `c/0` is absent where nothing is stored."""
STORED = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""The Zarr type of each dtype. Few libraries read Zarr's bfloat16 extension, so it is stored as the integers of the same bits."""
CODECS: dict[str, list[Any]] = {
    "none": [],
    "zstd": [ZstdCodec(level=3)],
    "blosc": [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")],
}
zarr.config.set({"array.write_empty_chunks": True})  # a chunk of zeros that is left out would read as valid when a file is lost


@dataclass(frozen=True)
class Layout:
    """Sizes and types of a store."""

    rows: int
    widths: dict[str, int]
    """Of each hook."""
    dtype: str
    sparse: tuple[str, ...]
    compression: str
    shard_rows: int
    chunk_rows: dict[str, int]
    """Of each hook; of all arrays with one number per row under `token`."""
    flagged: bool
    """Whether rows can be flagged as sinks."""

    @classmethod
    def of(cls, rows: int, widths: dict[str, int], spec: dict[str, Any]) -> "Layout":
        """The layout that a study's settings give. Raises UserError where a chunk would be too large, or `shard_rows` has no good ones."""
        size = np.dtype(STORED[spec["dtype"]]).itemsize
        shares = {hook: row_bytes(width, spec["dtype"], hook in spec["sparse"]) for hook, width in widths.items()}
        most = {**{hook: wanted(share) for hook, share in shares.items()}, "token": INDEX_CHUNK}
        chunk, shard = spec["chunk_rows"], spec["shard_rows"]
        if shard is None:
            widest, together = max(shares.values()), sum(shares.values())
            shard = power(min(max(rows * widest / SHARDS, LEAST_SHARD), MOST_SHARD, MOST_SHARDS * widest / together) / widest)
            shard = -(-shard // chunk) * chunk if chunk else shard
        elif not chunk and (problem := undivided(shard, most)):
            raise UserError(f"shard_rows: {problem}")
        chunks = {name: chunk or dividing(shard, rows_of_chunk) for name, rows_of_chunk in most.items()}
        for hook, width in widths.items():
            if hook not in spec["sparse"] and chunks[hook] * width * size > MOST_CHUNK:
                raise UserError(
                    f"chunk_rows: {chunks[hook]:,} rows of {hook} are more than a chunk may hold; at most {MOST_CHUNK // (width * size):,}"
                )
        flagged = spec["sinks_above"] is not None
        return cls(rows, widths, spec["dtype"], tuple(spec["sparse"]), spec["compression"], shard, chunks, flagged)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of a hook."""
        return np.dtype(STORED[self.dtype]).itemsize

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """Rows of a shard: the first, and one after the last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    def row_bytes(self) -> int:
        """Bytes of a row on the disk, about."""
        sizes = [width * self.itemsize * (SPARSE_SHARE if hook in self.sparse else 1) for hook, width in self.widths.items()]
        return (
            int(sum(sizes) * COMPRESSED[self.compression])
            + sum(np.dtype(dtype).itemsize for dtype in INDEX.values())
            + self.flagged * len(self.widths)
        )

    def held_bytes(self) -> int:
        """Most bytes that a job holds of dense hooks: one shard that fills, one on its way to the disk, and the copies that are made of
        an array as it is encoded."""
        rows = min(self.shard_rows, self.rows)
        dense = [width * self.itemsize * rows for hook, width in self.widths.items() if hook not in self.sparse]
        return 2 * sum(dense) + 2 * max(dense, default=0)

    def files(self, shard: int) -> dict[str, str]:
        """Files of a shard, each with the array it belongs to."""
        found = {f"{name}/c/{shard}": name for name in [*INDEX, *self._sinks()]}
        for hook in self.widths:
            if hook in self.sparse:
                found |= {f"{hook}/{shard}/{file}": hook for file in SPARSE_FILES}
            else:
                found[f"{hook}/c/{shard}/0"] = hook
        return {f"{STORE}/{file}": name for file, name in found.items()}

    def empty_files(self, shard: int, hook: str) -> set[str]:
        """Files of a shard of a sparse hook that are absent where nothing is stored."""
        return {f"{STORE}/{hook}/{shard}/{part}/c/0" for part in ("values", "indices")}

    def _sinks(self) -> list[str]:
        return [f"{SINKS}/{hook}" for hook in self.widths] if self.flagged else []

    def describe(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def sums_file(shard: int) -> str:
    """Name of the file that makes a shard written."""
    return f"sums/{shard:06d}.safetensors"


def outer_file(shard: int) -> str:
    """Name of the file of a shard's sums of outer products, which may be large."""
    return f"sums/{shard:06d}.outer.safetensors"


def documents(layout: Layout) -> dict[str, bytes]:
    """The `zarr.json` of the group and of every array whose shards are written later, by name: equal for all writers."""
    memory = MemoryStore()
    group = zarr.create_group(memory, zarr_format=3)
    for hook, width in layout.widths.items():
        if hook in layout.sparse:
            group.create_group(hook)
            continue
        array(group, hook, (layout.rows, width), layout, (layout.chunk_rows[hook], width), (layout.shard_rows, width))
    for name in [*INDEX, *layout._sinks()]:
        chunk = layout.chunk_rows["token"]
        array(group, name, (layout.rows,), layout, (chunk,), (layout.shard_rows,), INDEX.get(name, "bool"))
    return {f"{STORE}/{name}": bytes(content.to_bytes()) for name, content in memory._store_dict.items()}


def array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    layout: Layout,
    chunks: tuple[int, ...],
    shards: tuple[int, ...],
    dtype: str | None = None,
) -> zarr.Array:
    """An array of a store; of a hook's numbers when no dtype is given."""
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype or STORED[layout.dtype],
        chunks=chunks,
        shards=shards,
        serializer=BytesCodec(endian="little"),
        compressors=[*CODECS[layout.compression], Crc32cCodec()],
        overwrite=True,
        attributes={"saeflow": {"dtype": layout.dtype}} if dtype is None and layout.dtype == "bfloat16" else None,
    )


def put(storage: Storage, files: dict[str, bytes]) -> None:
    """Writes files that are not there yet as they should be."""
    for name, content in files.items():
        if storage.size(name) != len(content) or storage.read(name) != content:
            storage.write(name, content)
