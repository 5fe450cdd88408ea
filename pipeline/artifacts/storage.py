"""Where the files of an artifact lie: a folder, or a prefix of an object store.

An object store is reached by obstore (the extra `remote`). What is put there appears whole or not at all, as a file does that is
renamed into place.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from pipeline.artifacts.errors import UserError

BLOCK = 2**20
"""Bytes of a file that are held at a time while it is hashed."""
STREAM = 8 * 2**20
"""The same of an object: the least that is asked for at once."""


class _Hashing:
    """Hashes of files that come in blocks."""

    def blocks(self, name: str) -> Iterator[Any]:
        """The bytes of a file, a buffer at a time, each good until the next. Raises FileNotFoundError."""
        raise NotImplementedError

    def sha256(self, name: str) -> str:
        """Hex digest of a file's bytes."""
        return self._hashed(name, hashlib.sha256())[0]

    def xxh3(self, name: str) -> str:
        """Hex digest of 128 bits of a file's bytes, by XXH3: no proof against intent, and many times as fast."""
        return self._hashed(name, xxh3_128())[0]

    def hashes(self, name: str) -> tuple[str, str]:
        """Both, XXH3 first, in one read."""
        xxh3, sha256 = self._hashed(name, xxh3_128(), hashlib.sha256())
        return xxh3, sha256

    def _hashed(self, name: str, *hashes: Any) -> list[str]:
        for block in self.blocks(name):
            for one in hashes:
                one.update(block)
        return [one.hexdigest() for one in hashes]


class OpenFile:
    """A file that is open while somebody holds this."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read_at(self, at: int, buffers: Sequence[bytearray | memoryview]) -> int:
        """Fills buffers, one after the other, with the bytes from `at` on, and says how many there were."""
        rest, found = [memoryview(buffer) for buffer in buffers], 0
        # One call may give less than there is: at most 2 GiB, and what a network's file system has at hand.
        while rest and (count := os.preadv(self.descriptor, rest, at + found)):
            found += count
            while rest and count >= len(rest[0]):
                count -= len(rest.pop(0))
            rest[:1] = [part[count:] for part in rest[:1]]
        return found

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class OpenObject:
    """The same of an object."""

    def __init__(self, bucket: "Bucket", name: str) -> None:
        self._bucket, self._name = bucket, name

    def read_at(self, at: int, buffers: Sequence[bytearray | memoryview]) -> int:
        """Fills buffers, one after the other, with the bytes from `at` on, and says how many there were."""
        found = memoryview(self._bucket.range(self._name, at, sum(len(buffer) for buffer in buffers)))
        begin = 0
        for buffer in buffers:
            part = found[begin : begin + len(buffer)]
            buffer[: len(part)] = part
            begin += len(part)
        return begin


class Folder(_Hashing):
    """Files under a folder."""

    faults: tuple[type[Exception], ...] = (OSError,)
    """What can be raised of the storage itself; of an object store only by what `opened` and `zarr` give, else it is a UserError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, name: str) -> str:
        """How a message names a file."""
        return str(self.folder / name)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when there is none."""
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def blocks(self, name: str) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(BLOCK))
        with (self.folder / name).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield buffer[:count]

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Puts a small file in place by a rename, when it is on the disk."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # jobs on two machines may write the same file
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def flush(self, name: str) -> None:
        """Waits until a file's bytes are on the disk."""
        with (self.folder / name).open("rb") as file:
            os.fsync(file.fileno())

    def names(self) -> Iterator[str]:
        """All files."""
        return (str(path.relative_to(self.folder)) for path in sorted(self.folder.rglob("*")) if path.is_file())

    def remove(self, name: str) -> None:
        """Removes a file."""
        (self.folder / name).unlink(missing_ok=True)

    def free(self) -> int | None:
        """Bytes that can still be written; None where nobody knows."""
        return shutil.disk_usage(self.folder).free

    def opened(self, name: str) -> OpenFile:
        """A file, for reading parts of it."""
        return OpenFile(self.folder / name)

    def zarr(self, name: str) -> Any:
        """The Zarr store that lies under `name`."""
        from zarr.storage import LocalStore

        return LocalStore(self.folder / name)


class Bucket(_Hashing):
    """Objects under an address such as s3://bucket/prefix. Where the store itself cannot be used, UserError is raised."""

    def __init__(self, address: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            raise UserError(f"{address}: needs obstore; install it with: pip install 'saeflow[remote]'") from None
        self.address, self._obstore = address.rstrip("/"), obstore
        self.faults: tuple[type[Exception], ...] = (OSError, obstore.exceptions.BaseError)
        try:
            self._store = from_url(self.address)
        except (ValueError, obstore.exceptions.BaseError) as error:
            raise UserError(f"{address}: no address of an object store, such as s3://bucket/prefix ({said(error)})") from None

    def where(self, name: str) -> str:
        """How a message names an object."""
        return f"{self.address}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when there is none."""
        try:
            with self._told(name):
                return self._obstore.head(self._store, name)["size"]
        except FileNotFoundError:
            return None

    def blocks(self, name: str) -> Iterator[Any]:
        with self._told(name):
            yield from self._obstore.get(self._store, name).stream(min_chunk_size=STREAM)

    def read(self, name: str) -> bytes:
        """A small object. Raises FileNotFoundError."""
        with self._told(name):
            return bytes(self._obstore.get(self._store, name).bytes())

    def write(self, name: str, content: bytes) -> None:
        """Puts a small object."""
        try:
            with self._told(name):
                self._obstore.put(self._store, name, content)
        except FileNotFoundError:
            raise UserError(f"{self.where(name)}: there is no such bucket") from None

    def flush(self, name: str) -> None:
        """An object that was put is there."""

    def names(self) -> Iterator[str]:
        """All objects."""
        with self._told(""):
            for page in self._obstore.list(self._store):
                yield from (one["path"] for one in page)

    def remove(self, name: str) -> None:
        """Removes an object. That another job has done so meanwhile is no fault; some stores tell of it."""
        with suppress(FileNotFoundError), self._told(name):
            self._obstore.delete(self._store, name)

    def free(self) -> int | None:
        """Nobody knows."""
        return None

    def opened(self, name: str) -> OpenObject:
        """An object, for reading parts of it; whether it is there shows then."""
        return OpenObject(self, name)

    def range(self, name: str, at: int, size: int) -> Any:
        """Bytes of an object from `at` on. Raises `faults`."""
        return self._obstore.get_range(self._store, name, start=at, length=size)

    def zarr(self, name: str) -> Any:
        """The Zarr store that lies under `name`."""
        from obstore.store import from_url
        from zarr.storage import ObjectStore

        return ObjectStore(from_url(f"{self.address}/{name}"))

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Says on one line what the store refuses; that there is no such object is for the caller."""
        try:
            yield
        except FileNotFoundError:
            raise
        except self.faults as error:
            raise UserError(f"{self.where(name)}: {said(error)}") from None


def said(error: Exception) -> str:
    """What an error of a disk or of an object store says, on one line, without the page that a server sent with it."""
    return (getattr(error, "strerror", None) or str(error)).partition("\n")[0].partition(": <?xml")[0]


def unreadable(error: Exception) -> str:
    """What is said of a file that the storage itself does not give."""
    return f"could not be read ({said(error)})"


Storage = Folder | Bucket


def storage(folder: Path, location: str | None) -> Storage:
    """Where an artifact's files lie: at `location` if there is one, else in its folder."""
    return Bucket(location) if location else Folder(folder)
