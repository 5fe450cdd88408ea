"""Files of a hook's shards, mapped into memory one behind the other, so that rows of all of them are gathered as those of one array.

Reading a chunk into memory of our own moves its bytes three times: out of the page cache, into that memory, and from there into a batch.
Of files that are mapped only the last is left. Chunks are brought in with MADV_POPULATE_READ, which tells of a disk that fails where a
plain access would end the process (SIGBUS), and are compared with their checksums before any row is used.
"""

import ctypes
import mmap
import os
import sys
from functools import cache
from typing import NoReturn

import numpy as np

POPULATE_READ = 22
"""MADV_POPULATE_READ (Linux 5.14)."""
_FIXED = 0x10
"""MAP_FIXED of Linux on all common processors: Python's mmap has no name for it."""
_NORESERVE = 0x4000


@cache
def supported() -> bool:
    """Whether this system can do all that."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as one:
            one.madvise(POPULATE_READ)
    except OSError:
        return False
    return True


class MappedFiles:
    """Room in the address space for files of known sizes, each on pages of its own. What is mapped stays so until nobody holds this or an
    array of it any more. Threads may use it at the same time."""

    def __init__(self, sizes: list[int]) -> None:
        """Raises OSError where the system gives no such room."""
        whole = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
        self.sizes, self.starts = sizes, np.concatenate([[0], np.cumsum(whole)]).tolist()
        """Where each file begins, in bytes."""
        self._room = mmap.mmap(-1, max(self.starts[-1], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self.bytes = np.frombuffer(self._room, dtype=np.uint8)
        """All of them; only what `populate` was called for may be read, and nothing written."""
        self.chunks: dict[int, list[int]] = {}
        """Of each file that is mapped, where what it holds begins in `bytes`; who maps it says so."""

    def map(self, number: int, descriptor: int) -> None:
        """Maps a file, which is open as `descriptor`. Raises OSError."""
        if os.fstat(descriptor).st_size != self.sizes[number]:
            raise OSError("its size is not as published")  # what lies behind the end of a file cannot be mapped
        place = self.bytes.ctypes.data + self.starts[number]
        if _system("mmap")(place, self.sizes[number], mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, descriptor, 0) != place:
            _failed()

    def populate(self, start: int, size: int) -> np.ndarray:
        """Bytes `start` .. `start + size - 1`, of a file that is mapped. Raises OSError where they cannot be read."""
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._advise(POPULATE_READ, page, start + size - page)
        return self.bytes[start : start + size]

    def release(self) -> None:
        """Lets the memory go. Files stay mapped, and what was read of them in the page cache as long as there is room."""
        self._advise(mmap.MADV_DONTNEED, 0, self.starts[-1])

    def _advise(self, what: int, start: int, size: int) -> None:
        # Python's own `madvise` holds the interpreter's lock.
        if _system("madvise")(self.bytes.ctypes.data + start, size, what):
            _failed()


def _failed() -> NoReturn:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@cache
def _system(name: str) -> "ctypes._NamedFuncPointer":
    """mmap or madvise of the C library."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    where, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    function.restype = where if name == "mmap" else number
    function.argtypes = [where, size, number, number, number, ctypes.c_int64] if name == "mmap" else [where, size, number]
    return function
