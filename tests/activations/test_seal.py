"""Sealing: nothing is readable while a store changes, all of it is on the disk before it is, and shards are looked at a few at a time."""

import errno
import os
from threading import Event

import numpy as np
import pytest
from harvests import HOOKS, SPEC, digests, gpt, ids

import pipeline.activations.seal
from pipeline.activations.seal import _ahead
from pipeline.activations.sums import merged, packed, unpacked
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST
from pipeline.artifacts.storage import Folder
from tests.stores import harvest_job, sealed


@pytest.fixture
def dataset(make_tokens):
    return make_tokens(ids(), 11)


@pytest.fixture
def part(tmp_path, dataset):
    """What the one job of a harvest left."""
    return harvest_job(tmp_path / "store", gpt(), dataset, 8, covariance=HOOKS[:1], **SPEC)


@pytest.fixture
def seal(tmp_path, dataset, part):
    return lambda **changed: sealed(tmp_path / "store", [{**part, **changed}], dataset, 8, covariance=HOOKS[:1], **SPEC)


def test_the_old_manifest_is_gone_while_a_store_is_sealed_again(tmp_path, seal, monkeypatch):
    seal()
    seen = []
    for name in ("_remove", "merged", "_write"):
        real = getattr(pipeline.activations.seal, name)

        def watched(*given, real=real):
            seen.append((tmp_path / "store" / MANIFEST).exists())
            return real(*given)

        monkeypatch.setattr(pipeline.activations.seal, name, watched)
    expected = digests(tmp_path / "store")
    seal()
    assert seen
    assert not any(seen)
    assert digests(tmp_path / "store") == expected


def test_every_file_is_on_the_disk_before_the_manifest_is(tmp_path, seal, monkeypatch):
    flushed = set()
    flush = Folder.flush

    def watched(self: Folder, name: str) -> None:
        assert not (tmp_path / "store" / MANIFEST).exists()
        flushed.add(name)
        flush(self, name)

    monkeypatch.setattr(Folder, "flush", watched)
    files = seal().artifact.files
    flushed |= {name for name in files if name.startswith("sums/")}  # those are when they are put in place
    assert flushed == set(files)
    assert any("statistics" in name for name in files)


@pytest.mark.parametrize("where", ["_write", "put", "publish"])
def test_a_disk_that_is_full_at_sealing_ends_in_one_line_and_the_shards_stand(tmp_path, seal, monkeypatch, where):
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.activations.seal, where, full)
        with pytest.raises(UserError) as caught:
            seal()
    assert str(caught.value) == (
        f"{tmp_path}/store: No space left on device; the shards stand, and it goes on from them when it is started again"
    )
    assert len(seal()) == 61


def changed(folder, shard: int, change) -> None:
    """Packs a shard's sums again, whole, with another `about`."""
    path = folder / f"sums/{shard:06d}.safetensors"
    arrays, about = unpacked(path.read_bytes())
    change(about)
    path.write_bytes(packed(arrays, about))


def test_a_shard_that_was_flagged_by_another_threshold_is_not_sealed(tmp_path, seal):
    changed(tmp_path / "store", 3, lambda about: about["above"].update({HOOKS[0]: 1.0}))
    with pytest.raises(
        DamagedArtifact, match=r"sums/000003\.safetensors \(rows 24-31\): its rows are flagged by other thresholds, .*; repair: "
    ):
        seal()


def test_a_shard_whose_list_lacks_a_file_is_not_sealed_but_made_again(tmp_path, seal, part, dataset, capsys):
    name = f"store.zarr/{HOOKS[1]}/c/3/0"
    changed(tmp_path / "store", 3, lambda about: about["files"].pop(name))
    with pytest.raises(DamagedArtifact, match=rf"{name} \(rows 24-31\): was never written; repair: "):
        seal()
    capsys.readouterr()
    assert harvest_job(tmp_path / "store", gpt(), dataset, 8, covariance=HOOKS[:1], **SPEC) == part
    assert f"{name} (rows 24-31): was never written; made again" in capsys.readouterr().err
    seal()


def test_jobs_under_different_digests_are_told_so(tmp_path, part, dataset):
    with pytest.raises(UserError, match="its jobs ran with other code or settings, other versions of libraries, or on other devices"):
        sealed(tmp_path / "store", [part, {**part, "digest": "other"}], dataset, 8, covariance=HOOKS[:1], **SPEC)


def test_shards_are_looked_at_only_a_few_ahead_of_those_that_are_merged():
    begun = []
    results = _ahead(lambda number: begun.append(number) or number, 100)
    assert [next(results) for _ in range(5)] == list(range(5))
    Event().wait(0.05)  # all that may run ahead has done so
    assert len(begun) <= 5 + 3
    assert list(results) == list(range(5, 100))
    assert sorted(begun) == list(range(100))


def test_merging_leaves_what_it_merges_as_it_was():
    shards = [{"x.sum": np.arange(3.0) + i, "x.rows": np.array(i), "x.crc32c": np.zeros(1)} for i in range(4)]
    found = merged(shards)
    assert found.keys() == {"x.sum", "x.rows"}
    assert (found["x.sum"].tolist(), int(found["x.rows"])) == ([6.0, 10.0, 14.0], 6)
    assert shards[0]["x.sum"].tolist() == [0.0, 1.0, 2.0]
