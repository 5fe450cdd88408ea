"""How the C library keeps memory that is freed; decides no byte of what is computed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST = 2**30


def keep() -> None:
    """Lets this process keep what it frees, up to 1 GiB, for what it takes next.

    glibc gives blocks of some 32 MiB and more back to the system each time, and is given them back page by page, zeroed: up to a fifth of
    a forward, whose activations come and go at every batch (benchmarks/harvest.py). Elsewhere than on Linux with glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _MOST)
        mallopt(_TRIM_THRESHOLD, _MOST)
