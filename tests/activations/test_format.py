"""A store's bytes are as docs/activation-store.md says, and any library that reads Zarr v3 reads them."""

import hashlib
import json
import math
import re
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import xxhash
import zarr
from safetensors import safe_open
from safetensors.numpy import load_file

from pipeline.activations import writer
from tests.activations.expected import DTYPES, rounded, rows_of, same, stored

ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
ABSENT = 2**64 - 1


def with_zarr(folder: Path, name: str) -> np.ndarray:
    return zarr.open_group(folder / "store.zarr", mode="r")[name][...]


def with_zarrs(folder: Path, name: str) -> np.ndarray:
    with zarr.config.set(ZARRS):
        return with_zarr(folder, name)


def with_tensorstore(folder: Path, name: str) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "store.zarr" / name)}}
    return tensorstore.open(spec, read=True).result().read().result()


def densely(read, folder: Path, shards: int, width: int) -> np.ndarray:
    """A sparse hook's numbers (rows, width), put together as section 3 says, with any library."""
    found = []
    for shard in range(shards):
        values, indices, pointers = (read(folder, f"y/{shard}/{part}") for part in ("values", "indices", "pointers"))
        rows = np.zeros((len(pointers) - 1, width), dtype=values.dtype)
        for i in range(len(rows)):
            some = slice(pointers[i], pointers[i + 1])
            assert (np.diff(indices[some].astype(int)) > 0).all()
            rows[i, indices[some]] = values[some]
        found.append(rows)
    return np.concatenate(found)


@pytest.mark.parametrize("compression", ["none", "zstd", "blosc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "chunk", "shard"), [(21, 4, 8), (1, 4, 8), (17, 4, 8), (24, 8, 8)])
def test_any_library_reads_the_same_numbers(make_both, dtype, compression, rows, chunk, shard):
    """The last shard partial, a single row, a chunk that is missing from the last shard, a shard that is one chunk."""
    given = rows_of(rows)
    store = make_both(given, chunk_rows=chunk, shard_rows=shard, dtype=dtype, compression=compression)
    folder, positive = store.artifact.folder, given.clip(min=0)
    for read in (with_zarr, with_zarrs, with_tensorstore):
        assert same(read(folder, "x"), stored(given, dtype))
        assert same(densely(read, folder, -(-rows // shard), 5), stored(positive, dtype))
        assert same(read(folder, "sequence"), np.arange(rows) // 5)
        assert same(read(folder, "token"), np.arange(rows, dtype=np.int32))
        assert same(read(folder, "sinks/x"), np.zeros(rows, dtype=bool))
        assert same(read(folder, "statistics/x/mean"), store.mean("x"))
    assert same(store["x"].read(0, rows), rounded(given, dtype))
    assert same(store["y"].read(0, rows), rounded(positive, dtype))


def shard_by_hand(path: Path, chunks: int) -> list[tuple[int, bytes] | None]:
    """Offset and bytes of each chunk of a shard; None of one that is not there. The index at the end, its crc32c and theirs are checked."""
    content = path.read_bytes()
    index, crc = content[-16 * chunks - 4 : -4], struct.unpack("<I", content[-4:])[0]
    assert google_crc32c.value(index) == crc
    found: list[tuple[int, bytes] | None] = []
    for at, size in struct.iter_unpack("<QQ", index):
        if (at, size) == (ABSENT, ABSENT):
            found.append(None)
            continue
        chunk, crc = content[at : at + size - 4], struct.unpack("<I", content[at + size - 4 : at + size])[0]
        assert google_crc32c.value(chunk) == crc
        found.append((at, chunk))
    ends = [at + len(chunk) + 4 for at, chunk in (one for one in found if one)]
    assert [at for at, _ in (one for one in found if one)] == [0, *ends[:-1]], "in order, one right after the other"
    assert len(content) == ends[-1] + len(index) + 4
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [21, 17, 3])
def test_what_is_not_compressed_lies_at_known_places(make_both, rows, dtype):
    given = rows_of(rows)
    store = make_both(given, chunk_rows=4, shard_rows=12, dtype=dtype)
    folder, bits = store.artifact.folder / "store.zarr", stored(given, dtype)
    index = {"token": np.arange(rows, dtype="<i4"), "sequence": np.arange(rows, dtype="<i8") // 5, "sinks/x": np.zeros(rows, dtype=bool)}
    for name, values in {"x": bits, **index}.items():
        size = 4 * values[:1].nbytes
        for shard in range(-(-rows // 12)):
            here = values[12 * shard : 12 * shard + 12]
            chunks = shard_by_hand(folder / name / f"c/{shard}{'/0' if name == 'x' else ''}", 3)
            for number, chunk in enumerate(chunks):
                expected = here[4 * number : 4 * number + 4].tobytes()
                assert chunk == ((number * (size + 4), expected.ljust(size, b"\0")) if expected else None)


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_compressed_chunks_stand_in_order_too(make_both, compression):
    store = make_both(rows_of(24), compression=compression)
    for shard in range(3):
        assert all(shard_by_hand(store.artifact.folder / f"store.zarr/x/c/{shard}/0", 2))


def test_a_sparse_hook_lies_in_parts_by_shard(make_both, monkeypatch):
    monkeypatch.setattr(writer, "SPARSE_CHUNK", 7)
    given = rows_of(21).clip(min=0)
    store = make_both(given, chunk_rows=4, shard_rows=8)
    for shard in range(3):
        here = given[8 * shard : 8 * shard + 8]
        numbers = {"values": here[here != 0], "indices": here.nonzero()[1].astype("<u2")}
        numbers["pointers"] = np.concatenate([[0], (here != 0).sum(1).cumsum()]).astype("<i8")
        for part, expected in numbers.items():
            chunk = min(7, len(expected))
            found = shard_by_hand(store.artifact.folder / f"store.zarr/y/{shard}/{part}/c/0", math.ceil(len(expected) / chunk))
            assert b"".join(one[1] for one in found if one)[: expected.nbytes] == expected.tobytes()
    assert same(store["y"].read(0, 21), given)
    assert same(store["y"].read(3, 18), given[3:18])


def test_descriptions_are_as_the_page_says(make_both):
    folder = make_both(rows_of(21), dtype="bfloat16", compression="zstd", covariance=["x"]).artifact.folder / "store.zarr"
    expected = {
        "x": ((21, 5), "uint16", (8, 5), (4, 5)), "token": ((21,), "int32", (8,), (4,)), "sequence": ((21,), "int64", (8,), (4,)),
        "position": ((21,), "int32", (8,), (4,)), "sinks/x": ((21,), "bool", (8,), (4,)), "y/2/pointers": ((6,), "int64", (6,), (6,)),
    }  # fmt: skip
    for name, (shape, dtype, shard, chunk) in expected.items():
        about = json.loads((folder / name / "zarr.json").read_text())
        (sharding,) = about["codecs"]
        assert (tuple(about["shape"]), about["data_type"], about["fill_value"]) == (shape, dtype, False if dtype == "bool" else 0)
        assert tuple(about["chunk_grid"]["configuration"]["chunk_shape"]) == shard
        assert (sharding["name"], tuple(sharding["configuration"]["chunk_shape"])) == ("sharding_indexed", chunk)
        assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd", "crc32c"]
        assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
        assert about["attributes"] == ({"saeflow": {"dtype": "bfloat16"}} if name == "x" else {})
    assert json.loads((folder / "y/0/values/zarr.json").read_text())["attributes"] == {"saeflow": {"dtype": "bfloat16"}}
    for name, shape in {"statistics/x/mean": [5], "statistics/x/covariance": [5, 5], "statistics/y/mean": [5]}.items():
        about = json.loads((folder / name / "zarr.json").read_text())
        assert (about["shape"], about["data_type"], about["codecs"][-1]["name"]) == (shape, "float64", "crc32c")
    assert not (folder / "statistics/y/covariance").exists()


def test_attributes_are_those_that_the_page_lists(make_both):
    store = make_both(rows_of(21), dtype="float16")
    about = zarr.open_group(store.artifact.folder / "store.zarr", mode="r").attrs["saeflow"]
    listed = {"format", "model", "dataset", "split", "rows", "shard_rows", "dtype", "length", "left_out", "hooks", "index_chunk_rows"}
    assert about.keys() == listed
    assert {key: about[key] for key in ("format", "rows", "shard_rows", "dtype", "length", "split")} == {
        "format": 2, "rows": 21, "shard_rows": 8, "dtype": "float16", "length": 5, "split": "train"
    }  # fmt: skip
    assert about["left_out"] == {"rule": "special", "tokens": [], "positions": 0}
    hook = {"about", "width", "storage", "chunk_rows", "mean_squared_norm", "variance", "stored", "sinks"}
    assert {name: one.keys() for name, one in about["hooks"].items()} == {"x": hook, "y": hook}
    assert {name: one["storage"] for name, one in about["hooks"].items()} == {"x": "dense", "y": "sparse"}
    assert (about["hooks"]["x"]["stored"], about["hooks"]["y"]["stored"]) == (105, int((rows_of(21) > 0).sum()))
    unflagged = make_both(rows_of(21), "unflagged", sinks_above=None)
    assert unflagged.attributes["hooks"]["x"]["sinks"] is None
    assert not (unflagged.artifact.folder / "store.zarr/sinks").exists()


def test_sums_hold_what_was_stored_and_a_checksum_of_each_chunk(make_both):
    given = rows_of(21)
    folder = make_both(given, dtype="bfloat16").artifact.folder
    exact, bits = rounded(given, "bfloat16").astype(np.float64), stored(given, "bfloat16")
    for shard in range(3):
        span = slice(8 * shard, min(8 * shard + 8, 21))
        sums = load_file(folder / f"sums/{shard:06d}.safetensors")
        np.testing.assert_allclose(sums["x.sum"], exact[span].sum(0), rtol=1e-13)
        assert float(sums["x.square"]) == pytest.approx((exact[span] ** 2).sum(), rel=1e-13)
        assert int(sums["x.rows"]) == len(exact[span])
        starts = range(span.start, span.stop, 4)
        assert sums["x.crc32c"].tolist() == [google_crc32c.value(bits[i : min(i + 4, span.stop)].tobytes()) for i in starts]
        for number, start in enumerate(starts):
            here = bits[start : min(start + 4, span.stop)] * (given[start : min(start + 4, span.stop)] > 0)
            parts = [(here != 0).sum(1).astype("<i8"), here.nonzero()[1].astype("<u2"), here[here != 0]]
            assert sums["y.crc32c"][number] == google_crc32c.value(b"".join(part.tobytes() for part in parts))


def test_what_a_sums_file_says_of_itself_is_as_the_page_says(make_both):
    given = rows_of(21)
    given[9] *= 1000
    folder = make_both(given, covariance=["x"]).artifact.folder
    files = set()
    for shard, (start, stop) in enumerate([(0, 8), (8, 16), (16, 21)]):
        for name, outer in ((f"{shard:06d}.safetensors", False), (f"{shard:06d}.outer.safetensors", True)):
            with safe_open(folder / "sums" / name, "np") as file:
                metadata, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            assert metadata.keys() == {"about"}
            digest, _, text = metadata["about"].partition(" ")
            content = text.encode()
            for key in sorted(arrays):
                content += f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode() + arrays[key].tobytes()
            assert digest == hashlib.sha256(content).hexdigest()
            about = json.loads(text)
            assert about.keys() == {"digest", "rows", "above"} | (set() if outer else {"files"})
            assert about["rows"] == [start, stop]
            types = {key: (value.dtype.str, value.shape) for key, value in arrays.items()}
            hooks = {"sum": ("<f8", (5,)), "square": ("<f8", ()), "rows": ("<i8", ()), "stored": ("<i8", ())}
            crc32c = dict.fromkeys(["x", "y", "token", "sequence", "position", "sinks/x", "sinks/y"], ("<u4", (-(-(stop - start) // 4),)))
            own = {f"{hook}.{one}": kind for hook in ("x", "y") for one, kind in hooks.items()}
            assert types == ({"x.outer": ("<f8", (5, 5))} if outer else {**own, **{f"{one}.crc32c": kind for one, kind in crc32c.items()}})
            for path, entry in about.get("files", {}).items():
                found = (folder / path).read_bytes()
                said = {"size": len(found), "xxh3": xxhash.xxh3_128_hexdigest(found)}
                assert {key: entry[key] for key in said} == said
                assert entry["about"].startswith(f"rows {start}-{stop - 1} of ")
            files |= about.get("files", {}).keys() | {f"sums/{name}"}
    described = {name for name in json.loads((folder / "manifest.json").read_text())["files"] if re.search(r"/c/|/\d/|sums/", name)}
    assert files == {name for name in described if "statistics" not in name}
