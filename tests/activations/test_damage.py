"""No damage of a store passes for data: reading finds what it reads, `verify` finds all."""

import errno
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST
from pipeline.artifacts.storage import Folder, OpenFile
from pipeline.commands.verify import verify
from tests.activations.conftest import Both
from tests.stores import harvest_job, sealed

INDEX = ("token", "sequence", "position")
UNREAD = re.compile(r"store\.zarr/(sinks/|statistics/([xy]/)?|y/(\d/)?)zarr\.json|sums/\d+\.outer\.safetensors")
"""Files of the store below that reading has no use for: what describes inner groups, sums of outer products."""


def rows_of(seed: int) -> np.ndarray:
    """21 rows, of which row 9 is far too large and row 2 zero."""
    rows = np.random.default_rng(seed).normal(size=(21, 6)).astype(np.float32)
    rows[9] *= 1000
    rows[2] = 0
    return rows


@pytest.fixture(params=["none", "zstd", "blosc"])
def compression(request) -> str:
    return request.param


@pytest.fixture
def store(make_both, compression) -> ActivationStore:
    """Three shards, the last one partial; a flagged row; a covariance."""
    return make_both(rows_of(0), covariance=["x"], compression=compression)


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Everything there is, through a store opened anew."""
    store = ActivationStore(folder / MANIFEST)
    found = {name: store[name].read(0, len(store)) for name in ("x", "y", *INDEX)}
    found |= {f"{hook} kept": store[hook].kept(0, len(store)) for hook in ("x", "y")}
    return {**found, "mean x": store.mean("x"), "mean y": store.mean("y"), "covariance": store.covariance("x")}


def is_named(message: str, folder: Path, path: Path, words: str) -> None:
    """A message tells of this file and the repair, in these words, on one line."""
    assert message.startswith(f"{path}")
    assert message.endswith(f"repair: python -m pipeline repair {folder / MANIFEST}")
    assert "\n" not in message
    assert re.search(words, message), message


def found(folder: Path, path: Path, words: str) -> None:
    """Reading and verifying tell of it."""
    with pytest.raises(DamagedArtifact) as caught:
        read_all(folder)
    is_named(str(caught.value), folder, path, words)
    verified(folder, path)


def verified(folder: Path, *paths: Path) -> None:
    """Verifying tells of these files and no others."""
    with pytest.raises(UserError) as caught:
        verify(folder)
    lines = sorted(str(caught.value).splitlines())
    assert len(lines) == len(paths)
    for line, path in zip(lines, sorted(str(path) for path in paths), strict=True):
        is_named(line, folder, Path(path), "")


def about(name: str) -> str:
    """What a message says of a file besides its name."""
    if name.startswith("sums/"):
        first = 8 * int(name[5:11])
        return rf"\(sums of rows {first}-{min(first + 8, 21) - 1}\)"
    dense = re.fullmatch(r"store\.zarr/(x|token|sequence|position|sinks/[xy])/c/.*", name)
    sparse = re.fullmatch(r"store\.zarr/(y)/\d+/.*", name)
    return rf"\(rows \d+-\d+ of {(dense or sparse)[1]}\)" if dense or sparse else "differ"


def flip(path: Path, chance: random.Random) -> bytes:
    """Changes one byte; gives what was there."""
    content = path.read_bytes()
    at = chance.randrange(len(content))
    path.write_bytes(content[:at] + bytes([content[at] ^ chance.randrange(1, 256)]) + content[at + 1 :])
    return content


def test_a_flip_of_any_byte_of_any_file_is_found_and_named(store):
    folder = store.artifact.folder
    before = read_all(folder)
    assert not before["x kept"].all()
    chance = random.Random(0)
    files = list(store.artifact.files)
    assert len([name for name in files if UNREAD.fullmatch(name)]) == 11
    for name in [*files, *chance.choices(files, k=100 - len(files))]:
        content = flip(folder / name, chance)
        if UNREAD.fullmatch(name):
            verified(folder, folder / name)
        else:
            found(folder, folder / name, about(name))
        (folder / name).write_bytes(content)
    assert all(np.array_equal(now, before[name]) for name, now in read_all(folder).items())
    verify(folder)


@pytest.mark.parametrize("damage", ["lost", "emptied", "truncated", "longer"])
def test_a_file_of_another_size_is_found(make_both, damage):
    folder = make_both(rows_of(0), covariance=["x"]).artifact.folder
    store = ActivationStore(folder / MANIFEST)
    words = {"lost": "the file is missing", "emptied": "the file is empty"}.get(damage, "bytes, and .* were published")
    for name in store.artifact.files:
        if UNREAD.fullmatch(name):
            continue
        path = folder / name
        content = path.read_bytes()
        path.write_bytes({"truncated": content[:-1], "longer": content + b"\0"}.get(damage, b""))
        if damage == "lost":
            path.unlink()
        found(folder, path, words)
        path.write_bytes(content)


SHARDS = ["x/c/{}/0", "token/c/{}", "sequence/c/{}", "position/c/{}", "sinks/x/c/{}"]
PARTS = ["values", "indices", "pointers"]


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("name", [*SHARDS, "y/{}/pointers/c/0"])
def test_swapped_shards_are_found(store, name):
    """Both are valid, and of one size where nothing is compressed."""
    folder = store.artifact.folder
    one, other = (folder / "store.zarr" / name.format(number) for number in (0, 1))
    swap(one, other)
    alike = one.stat().st_size == other.stat().st_size
    with pytest.raises(DamagedArtifact) as caught:
        read_all(folder)
    words = rf"holds the bytes of store\.zarr/{re.escape(name.format(1))}" if alike else "bytes, and"
    is_named(str(caught.value), folder, one, words)
    is_named(str(caught.value), folder, one, r"\(rows 0-7 of ")
    verified(folder, one, other)


@pytest.fixture
def evenly(make_both, compression):
    """Makes stores of which each row has as many numbers above zero as any other, so that parts of shards are of one size."""

    def make(seed: int, name: str) -> ActivationStore:
        rows = np.abs(np.random.default_rng(seed).normal(size=(24, 6))) + 0.1
        rows[:, :3] *= -1
        return make_both(rows[:, np.random.default_rng(seed).permutation(6)], name, compression=compression)

    return make


@pytest.mark.parametrize("part", PARTS)
def test_swapped_parts_of_a_sparse_hook_are_found(make_both, part, compression):
    rows = np.zeros((16, 8))
    rows[:8, :2], rows[8:, 5:7] = 1, 2
    rows[8] = 0
    rows[8, 3] = rows[9, :3] = 4
    store = make_both(rows, compression=compression)
    folder = store.artifact.folder
    one, other = (folder / f"store.zarr/y/{number}/{part}/c/0" for number in (0, 1))
    assert one.read_bytes() != other.read_bytes()
    swap(one, other)
    for start in (0, 8):
        with pytest.raises(DamagedArtifact, match=rf"rows {start}-{start + 7} of y\): (holds the bytes of|.* bytes, and)"):
            ActivationStore(folder / MANIFEST)["y"].read(start, start + 8)
    verified(folder, one, other)


@pytest.mark.parametrize("name", ["x/c/1/0", *(f"y/1/{part}/c/0" for part in PARTS[:2])])
def test_a_shard_of_an_older_version_of_the_store_is_found(evenly, name):
    """It is of the same size, and every checksum inside is right."""
    old, new = evenly(1, "old").artifact.folder, evenly(2, "new").artifact.folder
    older = (old / "store.zarr" / name).read_bytes()
    alike = len(older) == (new / "store.zarr" / name).stat().st_size
    (new / "store.zarr" / name).write_bytes(older)
    with pytest.raises(DamagedArtifact, match=rf"rows 8-{11 if alike else 15} of {name[0]}\): .*; repair: "):
        ActivationStore(new / MANIFEST)[name[0]].read(0, 24)
    verified(new, new / "store.zarr" / name)


def test_whole_shards_of_an_older_version_are_found_with_their_sums(evenly):
    old, new = evenly(1, "old").artifact.folder, evenly(2, "new").artifact.folder
    for name in ("x/c/1/0", *(f"y/1/{part}/c/0" for part in PARTS)):
        shutil.copy(old / "store.zarr" / name, new / "store.zarr" / name)
    shutil.copy(old / "sums/000001.safetensors", new / "sums/000001.safetensors")
    for hook in ("x", "y"):
        with pytest.raises(DamagedArtifact, match=r"sums/000001\.safetensors \(sums of rows 8-15\): "):
            ActivationStore(new / MANIFEST)[hook].read(8, 16)


@pytest.mark.parametrize("damage", ["lost", "emptied", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["x/c/1/0", "token/c/1", *(f"y/1/{part}/c/0" for part in PARTS), "y/1/values/zarr.json"])
def test_damage_after_the_first_look_is_found(store, name, damage):
    """Sizes and hashes are compared once in a process; checksums whenever a chunk is read."""
    column = store[name.partition("/")[0]]
    before = column.read(0, 16)
    path = store.artifact.folder / "store.zarr" / name
    content = path.read_bytes()
    flipped = content[:9] + bytes([content[9] ^ 4]) + content[10:]
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes({"emptied": b"", "truncated": content[:9], "flipped": flipped}[damage])
    assert np.array_equal(column.read(0, 8), before[:8])
    if name.endswith("zarr.json") or damage == "lost":
        assert np.array_equal(column.read(8, 16), before[8:]), "what was opened stays as it was"
    else:
        with pytest.raises(DamagedArtifact, match=r"\(rows 8-1[15] of .*repair: "):
            column.read(8, 12)


EIO = "Input/output error"
NAMES = ["store.zarr/x/c/1/0", "store.zarr/token/c/1", "store.zarr/y/1/values/c/0", "sums/000001.safetensors"]


@pytest.fixture
def bad_place(monkeypatch) -> set[str]:
    """Names of files that lie where the disk is broken, until they are made anew."""
    names: set[str] = set()

    def check(name: str) -> None:
        if name in names:
            raise OSError(errno.EIO, EIO)

    blocks, read, opened, remove, at = Folder.blocks, Folder.read, Folder.opened, Folder.remove, OpenFile.read_at

    def remembered(self: Folder, name: str) -> OpenFile:
        file = opened(self, name)
        file.name = name  # type: ignore[attr-defined]
        return file

    monkeypatch.setattr(Folder, "blocks", lambda self, name: check(name) or blocks(self, name))
    monkeypatch.setattr(Folder, "read", lambda self, name: check(name) or read(self, name))
    monkeypatch.setattr(Folder, "opened", remembered)
    monkeypatch.setattr(Folder, "remove", lambda self, name: names.discard(name) or remove(self, name))
    monkeypatch.setattr(OpenFile, "read_at", lambda self, *given: check(self.name) or at(self, *given))
    return names


@pytest.mark.parametrize("name", NAMES)
def test_a_place_where_the_disk_is_broken_is_named_with_hook_and_rows(make_both, bad_place, name):
    folder = make_both(rows_of(0), covariance=["x"]).artifact.folder
    bad_place.add(name)
    found(folder, folder / name, rf"{about(name)}: could not be read \({EIO}\)")


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_read_that_fails_once_is_told_without_a_repair(make_both, monkeypatch, name):
    column = make_both(rows_of(0))[name.split("/")[1]]

    def broken(*_):
        raise OSError(errno.EIO, EIO)

    with monkeypatch.context() as patch:
        patch.setattr(OpenFile, "read_at", broken)
        with pytest.raises(UserError, match=rf"{column.name}/.* \(rows 8-1[15] of {column.name}\): could not be read \({EIO}\)$") as caught:
            column.read(8, 12)
        assert type(caught.value) is UserError
    assert len(column.read(8, 12)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_that_the_disk_does_not_give_is_refused_by_sealing_and_made_again(tmp_path, make_tokens, bad_place, capsys, name):
    dataset, settings = make_tokens(np.arange(22), 22), {"hooks": ["x", "y"], "sparse": ["y"], "chunk_rows": 4, "shard_rows": 8}

    def harvest() -> dict:
        return harvest_job(tmp_path / "store", Both(rows_of(0)), dataset, 5, **settings)

    part = harvest()
    bad_place.add(name)
    with pytest.raises(DamagedArtifact) as caught:
        sealed(tmp_path / "store", [part], dataset, 5, **settings)
    is_named(str(caught.value), tmp_path / "store", tmp_path / "store" / name, rf"{about(name)}: could not be read \({EIO}\)")
    capsys.readouterr()
    assert harvest() == part
    assert re.search(rf"{name} {about(name)}: could not be read \({EIO}\); made again", "".join(capsys.readouterr()))
    sealed(tmp_path / "store", [part], dataset, 5, **settings)
    verify(tmp_path / "store")
