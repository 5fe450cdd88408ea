"""A shard that is written here, and the same one as zarr-python writes it."""

import google_crc32c
import numpy as np
import pytest
import xxhash
import zarr

from pipeline.activations.direct import write_shard
from pipeline.activations.layout import Layout, documents, put
from pipeline.artifacts.storage import Folder
from tests.stores import settings


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 4, 11, 12])
def test_a_shard_has_the_bytes_that_zarr_writes(tmp_path, rows, dtype):
    layout = Layout.of(rows, {"x": 5}, settings(chunk_rows=4, shard_rows=12, dtype=dtype))
    put(Folder(tmp_path), documents(layout))
    group = zarr.open_group(tmp_path / "store.zarr", mode="r+")
    for name, chunk in {"x": 4, "token": 4, "sinks/x": 4}.items():
        array = group[name]
        values = np.arange(1, array.size + 1).reshape(array.shape).astype(array.dtype)
        array[...] = values
        file = tmp_path / "store.zarr" / name / ("c/0/0" if array.ndim == 2 else "c/0")
        expected = file.read_bytes()
        found = write_shard(tmp_path / "own" / name, values, chunk, 12)
        assert (tmp_path / "own" / name).read_bytes() == expected
        assert (found.size, found.xxh3) == (len(expected), xxhash.xxh3_128_hexdigest(expected))
        assert found.chunks.tolist() == [google_crc32c.value(values[start : start + 4]) for start in range(0, rows, 4)]
