"""Files of an artifact, in a folder and in an object store: the same of both."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import pytest
import zarr

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.storage import Bucket, Folder, Storage, storage
from tests.buckets import served


@pytest.fixture(scope="module")
def bucket():
    with served() as address:
        yield address


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> Storage:
    """An empty one of either kind."""
    if request.param == "folder":
        return storage(tmp_path, None)
    return storage(tmp_path, f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_an_address_makes_a_bucket_and_none_a_folder(tmp_path, bucket):
    assert isinstance(storage(tmp_path, None), Folder)
    assert isinstance(storage(tmp_path, f"{bucket}/x"), Bucket)


def test_what_is_written_is_read(place):
    content = bytes(range(256)) * 99
    place.write("deep/er/a.bin", content)
    assert place.read("deep/er/a.bin") == content
    assert place.size("deep/er/a.bin") == len(content)
    assert place.sha256("deep/er/a.bin") == hashlib.sha256(content).hexdigest()
    place.flush("deep/er/a.bin")
    place.write("deep/er/a.bin", b"")
    assert (place.read("deep/er/a.bin"), place.size("deep/er/a.bin")) == (b"", 0)
    assert place.sha256("deep/er/a.bin") == hashlib.sha256(b"").hexdigest()


def test_what_is_larger_than_a_block_is_hashed_whole(place):
    content = np.random.default_rng(0).bytes(2**24 + 2**23 + 1)
    place.write("large", content)
    assert place.sha256("large") == hashlib.sha256(content).hexdigest()


def test_what_is_not_there_is_none_or_not_found(place):
    place.write("deep/a", b"1")
    for name in ("b", "deep", "deep/b"):
        assert place.size(name) is None
        place.remove(name) if name != "deep" else None
    for read in (place.read, place.sha256, lambda name: place.opened(name).read_at(0, [bytearray(1)])):
        with pytest.raises(FileNotFoundError):
            read("b")


def test_names_are_those_of_all_files(place):
    for name in ("z", "a/b", "a/c/d", "a.b"):
        place.write(name, b"1")
    assert sorted(place.names()) == ["a.b", "a/b", "a/c/d", "z"]
    place.remove("a/b")
    assert sorted(place.names()) == ["a.b", "a/c/d", "z"]


def test_an_empty_place_has_no_names(place):
    assert list(place.names()) == []


def test_a_prefix_is_no_part_of_another(bucket):
    one, other = Bucket(f"{bucket}/same"), Bucket(f"{bucket}/same-but-longer/")
    one.write("a", b"1")
    other.write("b", b"2")
    assert (list(one.names()), list(other.names())) == (["a"], ["b"])
    assert other.where("b") == f"{bucket}/same-but-longer/b"


def test_readers_see_one_of_the_contents_that_are_written(place):
    """Whole: never a part, never none."""
    contents = [bytes([number]) * (1 + 50_000 * number) for number in range(4)]
    place.write("a", contents[0])
    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(place.write, "a", content) for content in contents * 5]
        while not all(one.done() for one in writing):
            assert place.read("a") in contents
        for one in writing:
            one.result()
    assert list(place.names()) == ["a"], "nothing is left beside it"


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        Folder(tmp_path).write("a", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_parts_of_a_file_are_read_in_place(place):
    place.write("a", bytes(range(100)))
    opened = place.opened("a")
    one, two, three = bytearray(3), bytearray(0), np.empty(4, dtype=np.uint8)
    assert opened.read_at(90, [one, two, three.data]) == 7
    assert (bytes(one), three.tolist()) == (bytes([90, 91, 92]), [93, 94, 95, 96])


@pytest.mark.parametrize("most", [1, 3, 7])
def test_a_disk_that_gives_less_at_a_time_is_asked_again(tmp_path, monkeypatch, most):
    """As a network's file system may, and Linux does above 2 GiB."""
    own = os.preadv

    def some(number, buffers, at):
        content = os.pread(number, min(most, sum(map(len, buffers))), at)
        given = memoryview(content)
        for buffer in buffers:
            count = min(len(buffer), len(given))
            buffer[:count], given = given[:count], given[count:]
        return len(content)

    Folder(tmp_path).write("a", bytes(range(100)))
    opened = Folder(tmp_path).opened("a")
    for at, sizes in ((90, [3, 0, 4]), (0, [50, 50]), (95, [3, 3]), (2, [0, 0]), (100, [1])):
        found = []
        for read in (own, some):
            monkeypatch.setattr(os, "preadv", read)
            buffers = [bytearray(size) for size in sizes]
            found.append((opened.read_at(at, buffers), buffers))
        assert found[0] == found[1]
        assert found[0][0] == min(sum(sizes), 100 - at)


def test_what_is_read_past_the_end_is_told(place):
    place.write("a", bytes(10))
    assert place.opened("a").read_at(8, [bytearray(4)]) == 2


def test_zarr_reads_and_writes_there(place):
    values = np.arange(12).reshape(4, 3)
    zarr.create_array(place.zarr("deep/store.zarr"), name="x", data=values, chunks=(2, 3))
    assert np.array_equal(zarr.open_array(place.zarr("deep/store.zarr"), path="x", mode="r")[:], values)
    assert "deep/store.zarr/x/c/1/0" in list(place.names())


def test_to_remove_what_another_job_has_removed_meanwhile_is_no_fault(bucket, monkeypatch):
    """Google's and Azure's stores tell of it, S3 does not."""
    place = Bucket(f"{bucket}/removed")
    place.write("a", b"1")

    def gone(store, name):
        raise FileNotFoundError(f"Object at location {name} not found")

    monkeypatch.setattr(obstore, "delete", gone)
    place.remove("a")


def test_room_is_known_of_a_folder_alone(place):
    assert (place.free() is None) == isinstance(place, Bucket)


def test_a_bucket_that_is_not_there_is_named_on_one_line(bucket):
    place = Bucket("s3://no-such-bucket/x")
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/x/a: there is no such bucket$"):
        place.write("a", b"1")
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/x/: .*404 Not Found$"):
        list(place.names())


@pytest.mark.parametrize("address", ["nowhere://bucket/x", "bucket/x"])
def test_an_address_of_no_kind_is_named_on_one_line(address):
    with pytest.raises(UserError, match=rf"^{address}: no address of an object store, such as s3://bucket/prefix \(") as caught:
        Bucket(address)
    assert "\n" not in str(caught.value)
