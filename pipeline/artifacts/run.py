"""What a run took and ran on. Kept apart from the artifact it made, since it is never twice the same."""

import importlib.metadata
import os
import platform
import resource
import sys
import time
from typing import Any

LIBRARIES = ("saeflow", "torch", "numpy", "numba", "pyarrow", "zarr", "safetensors", "matplotlib", "snakemake")
_IMPORTED = time.time()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the bytes, of those installed."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run_facts() -> dict[str, Any]:
    """Start, wall and processor seconds, peak memory, host and versions of this process up to now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_IMPORTED)),
        "wall_seconds": round(time.time() - _IMPORTED, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_memory_bytes": peak,
        "host": platform.node(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }
