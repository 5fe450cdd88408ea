"""What a store holds: numbers as rounded, their statistics, sparse rows; and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.activations.store import ActivationStore
from pipeline.activations.sums import widened
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, own_hash, write_json
from pipeline.artifacts.publishing import publishing
from tests.activations.expected import DTYPES, rounded, rows_of, same, stored
from tests.conftest import Passing
from tests.stores import harvest_job, sealed


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_are_of_the_numbers_as_stored_and_of_rows_that_are_not_flagged(make_both, dtype):
    given = rows_of(60)
    given[[7, 30]] *= 500
    store = make_both(given, dtype=dtype, covariance=["x", "y"])
    for hook, rows in {"x": given, "y": given.clip(min=0)}.items():
        flagged = ~store[hook].kept(0, 60)
        assert np.flatnonzero(flagged).tolist() == [7, 30]
        assert store.attributes["hooks"][hook]["sinks"]["rows"] == 2
        exact = rounded(rows, dtype).astype(np.float64)[~flagged]
        np.testing.assert_allclose(store.mean(hook), exact.mean(0), rtol=1e-12)
        assert store.mean_squared_norm(hook) == pytest.approx((exact**2).sum(1).mean(), rel=1e-12)
        assert store.variance(hook) == pytest.approx(exact.var(0).sum(), rel=1e-11)
        np.testing.assert_allclose(store.covariance(hook), np.cov(exact.T, bias=True), rtol=1e-10, atol=1e-13)
    with pytest.raises(KeyError, match="no covariance of x is stored"):
        make_both(given, "without", dtype=dtype).covariance("x")
    for ask in (store.mean, store.covariance):
        with pytest.raises(KeyError, match="of z is stored; there are x, y"):
            ask("z")


def test_sizes_of_shards_change_statistics_by_rounding_alone(make_both):
    given = rows_of(61) + 100
    one, two, three = (make_both(given, f"store{chunk}", chunk, shard, covariance=["x"]) for chunk, shard in [(4, 8), (1, 61), (16, 64)])
    for other in (two, three):
        for hook in ("x", "y"):
            np.testing.assert_allclose(other.mean(hook), one.mean(hook), rtol=1e-12)
            assert other.mean_squared_norm(hook) == pytest.approx(one.mean_squared_norm(hook), rel=1e-12)
        np.testing.assert_allclose(other.covariance("x"), one.covariance("x"), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65520.0), ("float32", math.inf), ("bfloat16", 3.4e38), ("float16", math.nan)])
def test_a_number_that_does_not_fit_is_named(make_both, dtype, value):
    given = rows_of(21)
    given[13, 2] = value
    with pytest.raises(UserError, match=r"^hook [xy]: a number is not finite.*, at sequence 2, position 3$"):
        make_both(given, dtype=dtype)


SPARSE = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 30), st.integers(1, 6)), elements=st.sampled_from([0, 0, 0, 1, 2.5, 0.5]), fill=st.just(0)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(rows=SPARSE, chunk=st.integers(1, 5), chunks=st.integers(1, 3), dtype=st.sampled_from(sorted(DTYPES)), data=st.data())
def test_any_sparse_rows_come_back(make_both, tmp_path, rows, chunk, chunks, dtype, data):
    """Also rows, chunks and shards of zeros, and full ones."""
    shutil.rmtree(tmp_path / "store", ignore_errors=True)  # a shard that is written would be kept
    shutil.rmtree(tmp_path / "store-ids", ignore_errors=True)
    store = make_both(rows, chunk_rows=chunk, shard_rows=chunk * chunks, dtype=dtype, sinks_above=None, sparse=["x", "y"])
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    for hook in ("x", "y"):
        column = store[hook]
        assert column.sparse
        assert np.array_equal(column.read(0, len(rows)), rows)
        assert np.array_equal(column.read(start, stop), rows[start:stop])
        assert np.array_equal(np.concatenate(list(column.batches(3))), rows)
        assert sum(column.chunks.stored(shard).sum() for shard in range(-(-len(rows) // column.shard_rows))) == (rows != 0).sum()
    np.testing.assert_allclose(store.mean("x"), rows.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-300)


def test_a_shard_of_zeros_has_no_numbers_on_the_disk(make_both):
    given = rows_of(24)
    given[8:16] = -1
    store = make_both(given)
    folder = store.artifact.folder / "store.zarr/y/1"
    assert not (folder / "values/c").exists()
    assert not (folder / "indices/c").exists()
    assert (folder / "pointers/c/0").is_file()
    assert not store["y"].read(8, 16).any()
    assert same(store["y"].read(0, 24), given.clip(min=0))
    (folder / "pointers/c/0").unlink()
    with pytest.raises(DamagedArtifact, match=r"rows 8-15 of y.*missing"):
        ActivationStore(store.artifact.folder / MANIFEST)["y"].read(8, 9)


@pytest.mark.parametrize(("width", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_wide_hooks_have_wide_indices(make_both, width, dtype):
    given = np.full((9, width), -1, dtype=np.float32)
    given[:, [0, 5, -1]] = [1, 2, 3]
    store = make_both(given, sparse=["x", "y"])
    indices = zarr.open_array(store.artifact.folder / "store.zarr/y/0/indices", mode="r")
    assert (indices.dtype, indices[:].tolist()) == (dtype, [0, 5, width - 1] * 8)
    assert same(store["y"].read(0, 9), given.clip(min=0))
    assert same(store["x"].read(7, 9), given[7:9])


def test_a_chunk_that_no_reader_could_take_is_refused(make_both, monkeypatch):
    monkeypatch.setattr("pipeline.activations.layout.MOST_CHUNK", 100)
    with pytest.raises(UserError, match=r"^chunk_rows: 8 rows of x are more than a chunk may hold; at most 5$"):
        make_both(rows_of(21), chunk_rows=8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_numbers_are_widened_exactly(dtype):
    given = rows_of(50)
    assert same(widened(stored(given, dtype), dtype), rounded(given, dtype))


def test_a_store_of_format_1_is_refused(make_both):
    store = make_both(rows_of(21))
    manifest = store.artifact.folder / MANIFEST
    group = store.artifact.folder / "store.zarr/zarr.json"
    group.write_text(group.read_text().replace('"format": 2', '"format": 1'))
    content = json.loads(manifest.read_text())
    content["files"]["store.zarr/zarr.json"] |= {
        "size": group.stat().st_size,
        "sha256": Artifact.open(manifest).storage.sha256("store.zarr/zarr.json"),
    }
    write_json(manifest, {**content, "hash": own_hash(content)})
    with pytest.raises(
        DamagedArtifact, match=r"^.*manifest\.json: the store has format 1, and this version reads 2; repair: python -m pipeline repair .*$"
    ):
        ActivationStore(manifest)


def test_another_artifact_is_no_store(tmp_path):
    with publishing(tmp_path / "other", "dataset", {}, {}) as draft:
        draft.write_json("a.json", 1)
    with pytest.raises(DamagedArtifact, match=r"^.*manifest\.json: not of an activation store, .*; repair: "):
        ActivationStore(tmp_path / "other" / MANIFEST)


def test_an_unknown_hook_is_told_of(make_both):
    with pytest.raises(KeyError, match="no 'z' is stored; there are x, y, token, sequence, position"):
        make_both(rows_of(21))["z"]


def test_shards_of_another_harvest_are_not_sealed(tmp_path, make_table):
    dataset, settings = make_table(rows_of(21)), {"chunk_rows": 4, "shard_rows": 8}
    (part,) = [harvest_job(tmp_path / "store", Passing(), dataset, None, digest="of another study", **settings)]
    with pytest.raises(DamagedArtifact, match=r"^.*sums/000000\.safetensors \(rows 0-7\): of another harvest; repair: "):
        sealed(tmp_path / "store", [{**part, "digest": "of this study"}], dataset, None, **settings)
    assert not (tmp_path / "store" / MANIFEST).exists()
