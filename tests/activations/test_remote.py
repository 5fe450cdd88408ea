"""Stores that lie in an object store: a real server on this machine."""

import re

import numpy as np
import obstore
import pytest
import zarr
from harvests import SPEC, ids, published_gpt
from obstore.store import from_url
from torch import Tensor, nn
from zarr.storage import ObjectStore

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST
from pipeline.artifacts.storage import Bucket
from pipeline.commands.verify import verify
from pipeline.steps import harvest, seal_store
from pipeline.study.activations import Activations
from tests.activations.conftest import Both
from tests.buckets import served
from tests.stores import harvest_job, harvested, sealed

SETTINGS = {"hooks": ["x", "y"], "sparse": ["y"], "covariance": ["x"], "chunk_rows": 4, "shard_rows": 8}


@pytest.fixture(scope="module")
def bucket():
    with served() as address:
        yield address


@pytest.fixture
def location(bucket, tmp_path) -> str:
    return f"{bucket}/{tmp_path.name}/store"


def rows_of(seed: int = 0) -> np.ndarray:
    """30 rows in four shards, the last partial; row 9 is flagged."""
    rows = np.random.default_rng(seed).normal(size=(30, 6)).astype(np.float32)
    rows[9] *= 1000
    return rows


class Counting(nn.Module):
    """A model that counts how often it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards = model, 0

    def forward(self, ids: Tensor, tap) -> Tensor:
        self.forwards += 1
        return self.model(ids, tap)


@pytest.fixture
def dataset(make_tokens):
    return make_tokens(np.arange(31), 31)


@pytest.fixture
def make(tmp_path, dataset, location):
    """Harvests by two jobs, seals, and opens by the local manifest."""

    def make(given: np.ndarray, name: str = "store", location: str | None = location, **chosen) -> ActivationStore:
        return harvested(tmp_path / name, Both(given), dataset, 5, jobs=2, location=location, **{**SETTINGS, **chosen})

    return make


def numbers(store: ActivationStore) -> dict[str, np.ndarray]:
    """Everything there is."""
    found = {name: store[name].read(0, len(store)) for name in ("x", "y", "token", "sequence", "position")}
    kept = {f"{hook} kept": store[hook].kept(0, len(store)) for hook in ("x", "y")}
    return {**found, **kept, "mean": store.mean("x"), "covariance": store.covariance("x")}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(values, other[name]) for name, values in one.items())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_store_elsewhere_is_the_same_as_one_here(make, location, compression):
    here, there = make(rows_of(), "here", None, compression=compression), make(rows_of(), compression=compression)
    assert equal(numbers(there), numbers(here))
    place = Bucket(location)
    assert sorted(place.names()) == sorted([*there.artifact.files, MANIFEST])
    assert there.artifact.files == here.artifact.files
    for name in here.artifact.files:
        assert place.read(name) == (here.artifact.folder / name).read_bytes()
    assert there.artifact.facts == {**here.artifact.facts, "location": location}
    assert {str(path.relative_to(there.artifact.folder)) for path in there.artifact.folder.rglob("*")} == {MANIFEST, "run.json"}
    verify(there.artifact.folder)


def test_plain_zarr_reads_it_there(make, location):
    store = make(rows_of())
    group = zarr.open_group(ObjectStore(from_url(f"{location}/store.zarr")), mode="r")
    assert np.array_equal(group["x"][:], rows_of())
    assert np.array_equal(group["sequence"][:], store["sequence"].read(0, 30))
    assert group["y/3/values"].shape[0] == (rows_of()[24:] > 0).sum()


def test_the_manifest_is_put_there_last_and_then_here(make, location, monkeypatch, tmp_path):
    place, seen = Bucket(location), []
    write = Bucket.write

    def watched(self: Bucket, name: str, content: bytes) -> None:
        seen.append((name, (tmp_path / "store" / MANIFEST).exists()))
        write(self, name, content)

    monkeypatch.setattr(Bucket, "write", watched)
    make(rows_of())
    assert [one for one in seen if one[0] == MANIFEST] == [(MANIFEST, False)]
    assert seen[-1][0] == MANIFEST
    assert place.read(MANIFEST) == (tmp_path / "store" / MANIFEST).read_bytes()


def test_nothing_can_be_read_before_it_is_published(tmp_path, dataset, location):
    parts = [harvest_job(tmp_path / "store", Both(rows_of()), dataset, 5, job, 2, location, **SETTINGS) for job in range(2)]
    for manifest in (tmp_path / "store" / MANIFEST, f"{location}/{MANIFEST}"):
        with pytest.raises(DamagedArtifact, match=r"manifest\.json: there is no manifest, so the artifact was never finished; repair: "):
            ActivationStore(manifest)
    sealed(tmp_path / "store", parts, dataset, 5, location, **SETTINGS)
    assert len(ActivationStore(f"{location}/{MANIFEST}")) == 30
    harvest_job(tmp_path / "store", Both(rows_of(1)), dataset, 5, 0, 2, location, digest="another", **SETTINGS)
    with pytest.raises(DamagedArtifact, match="never finished"):
        ActivationStore(f"{location}/{MANIFEST}")


def test_a_store_is_opened_by_its_address_alone(make, location):
    store = make(rows_of())
    far = ActivationStore(f"{location}/{MANIFEST}")
    assert equal(numbers(far), numbers(store))
    assert far.artifact.hash == store.artifact.hash
    Bucket(location).remove("store.zarr/x/c/1/0")
    with pytest.raises(DamagedArtifact) as caught:
        ActivationStore(f"{location}/{MANIFEST}")["x"].read(0, 30)
    assert str(caught.value) == (
        f"{location}/store.zarr/x/c/1/0 (rows 8-15 of x): the file is missing; "
        "repair: python -m pipeline repair <its manifest in results/>, where it was made"
    )


OBJECTS = [
    "x/c/1/0",
    "token/c/1",
    "sinks/x/c/1",
    "y/1/values/c/0",
    "y/1/indices/c/0",
    "y/1/pointers/c/0",
    "statistics/x/mean/c/0",
    "x/zarr.json",
]


def broken(content: bytes, damage: str) -> bytes:
    flipped = content[:9] + bytes([content[9] ^ 4]) + content[10:]
    return {"emptied": b"", "truncated": content[:9], "flipped": flipped}[damage]


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_damaged_objects_are_found(make, location, damage):
    folder, place = make(rows_of()).artifact.folder, Bucket(location)
    names = [f"store.zarr/{name}" for name in OBJECTS] + ["sums/000001.safetensors"]
    messages = []
    for name in names:
        content = place.read(name)
        place.remove(name) if damage == "lost" else place.write(name, broken(content, damage))
        with pytest.raises(DamagedArtifact) as caught:
            numbers(ActivationStore(folder / MANIFEST))
        messages.append(str(caught.value))
        place.write(name, content)
    for name in names:
        place.remove(name) if damage == "lost" else place.write(name, broken(place.read(name), damage))
    with pytest.raises(UserError) as caught:
        verify(folder)
    for found in (messages, sorted(str(caught.value).splitlines())):
        assert len(found) == len(names)
        for name, message in zip(names if found is messages else sorted(names), found, strict=True):
            assert message.startswith(f"{location}/{name}")
            assert message.endswith(f"; repair: python -m pipeline repair {folder / MANIFEST}")


def test_damage_after_the_first_look_is_found(make, location):
    store, place = make(rows_of()), Bucket(location)
    for name in ("x/c/1/0", "y/1/values/c/0"):
        column, path = store[name[0]], f"store.zarr/{name}"
        before, content = column.read(0, 16), place.read(path)
        for damage in ("lost", "emptied", "truncated", "flipped"):
            place.remove(path) if damage == "lost" else place.write(path, broken(content, damage))
            assert np.array_equal(column.read(0, 8), before[:8])
            with pytest.raises(DamagedArtifact, match=rf"^{location}/{path} \(rows 8-1[15] of {name[0]}\): .*; repair: "):
                column.read(8, 12)
        place.write(path, content)
        assert np.array_equal(column.read(0, 16), before)


def test_another_manifest_there_is_told_of_by_verify(make, location):
    folder, place = make(rows_of()).artifact.folder, Bucket(location)
    place.write(MANIFEST, place.read(MANIFEST) + b"\n")
    with pytest.raises(UserError, match=rf"^{location}/manifest\.json: is not the manifest that stands in {folder}; repair: "):
        verify(folder)
    place.remove(MANIFEST)
    with pytest.raises(UserError, match=rf"^{location}/manifest\.json: the manifest is missing; repair: "):
        verify(folder)


def test_shards_that_are_written_are_kept_and_a_damaged_one_is_made_again(tmp_path, dataset, location):
    def again() -> int:
        """Forwards that two jobs take; the first of each is its sample."""
        model = Counting(Both(rows_of()))
        parts = [harvest_job(tmp_path / "store", model, dataset, 5, job, 2, location, **SETTINGS) for job in range(2)]
        sealed(tmp_path / "store", parts, dataset, 5, location, **SETTINGS)
        return model.forwards - 2

    place = Bucket(location)
    assert again() >= 2
    manifest = place.read(MANIFEST)
    assert again() == 0
    place.write("store.zarr/x/c/2/0", b"broken")
    place.remove("store.zarr/y/2/pointers/c/0")
    assert again() == 1
    assert place.read(MANIFEST) == manifest == (tmp_path / "store" / MANIFEST).read_bytes()
    verify(tmp_path / "store")


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_what_is_put_is_hashed_here_not_as_it_comes_back(tmp_path, dataset, location, monkeypatch, compression):
    spec = {**SETTINGS, "compression": compression}
    with monkeypatch.context() as patch:
        for way in ("blocks", "range"):
            patch.setattr(Bucket, way, lambda *_: pytest.fail("what was put is read"))
        put = Bucket.write

        def flipped(self: Bucket, name: str, content: bytes) -> None:
            put(self, name, broken(content, "flipped") if name.endswith("x/c/1/0") else content)

        patch.setattr(Bucket, "write", flipped)
        part = harvest_job(tmp_path / "store", Both(rows_of()), dataset, 5, location=location, **spec)
    with pytest.raises(DamagedArtifact, match=r"x/c/1/0 \(rows 8-15 of x\): the bytes differ from those written"):
        sealed(tmp_path / "store", [part], dataset, 5, location, **spec)


def test_objects_of_an_earlier_harvest_are_removed(make, location):
    place = Bucket(location)
    make(rows_of())
    place.write("not/of/a/store", b"1")
    store = make(rows_of(), rows=10, hooks=["x"], sparse=[], covariance=[])
    assert len(store) == 10
    assert sorted(place.names()) == sorted([*store.artifact.files, MANIFEST, "not/of/a/store"])


def test_a_bucket_that_is_not_there_is_told_before_anything_is_computed(make):
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/x/store\.zarr/.*: there is no such bucket$"):
        make(rows_of(), location="s3://no-such-bucket/x")


@pytest.mark.parametrize("unreachable", [False, True])
@pytest.mark.parametrize("hook", ["x", "y"])
def test_a_store_that_does_not_answer_for_a_while_is_not_taken_for_a_damaged_one(make, location, monkeypatch, hook, unreachable):
    store = make(rows_of())
    column = store[hook]
    before = column.read(0, 8)

    def timeout(*_, **__):
        raise obstore.exceptions.GenericError("Generic S3 error: operation timed out\nafter ten times")

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "get_range", timeout)
        if unreachable:
            patch.setattr(obstore, "head", timeout)
        with pytest.raises(UserError) as caught:
            column.read(8, 16)
    assert type(caught.value) is UserError
    words = "Generic S3 error: operation timed out"
    told = rf"\S+: {words}" if unreachable else rf"store\.zarr/{hook}/\S+ \(rows 8-11 of {hook}\): could not be read \({words}\)"
    assert re.fullmatch(f"{location}/{told}", str(caught.value))
    assert np.array_equal(column.read(0, 8), before)
    assert len(column.read(8, 16)) == 8


def test_a_store_that_another_person_published_at_the_same_address_is_left_alone(tmp_path, make_tokens, location):
    dataset = make_tokens(ids(), 11)

    def store(person: str, seed: int, **chosen) -> None:
        model = published_gpt(tmp_path / f"{person}-model", seed)
        given = [one.folder / MANIFEST for one in (model, dataset)]
        spec = {**Activations(model="gpt", **{**SPEC, **chosen}).settings(), "split": "train"}
        run = {"jobs": 1, "location": location}
        harvest.main({**spec, "run": {**run, "job": 0, "memory_mb": 64}}, *given, tmp_path / person)
        seal_store.main({**spec, "run": run}, *given, tmp_path / person)

    store("me", 0)
    objects = {name: Bucket(location).read(name) for name in Bucket(location).names()}
    with pytest.raises(UserError, match=rf"^{location}/manifest\.json: is of another artifact, .* not from {tmp_path}/you; choose another"):
        store("you", 1)
    assert {name: Bucket(location).read(name) for name in Bucket(location).names()} == objects
    store("me", 0, rows=10)
    assert len(ActivationStore(f"{location}/{MANIFEST}")) == 10
