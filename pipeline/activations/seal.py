"""Makes an artifact of a harvested store: checks every shard, merges their sums in order, writes statistics and attributes, publishes."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr

from pipeline.activations.layout import FORMAT, SINKS, STATISTICS, STORE, Layout, documents, put, sums_file
from pipeline.activations.sums import Arrays, merged, statistics
from pipeline.activations.writer import HASHED, fault_of, foreign, read_sums
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, repair, write_json
from pipeline.artifacts.publishing import seal as publish
from pipeline.artifacts.publishing import withdraw
from pipeline.artifacts.storage import Folder, Storage, said
from pipeline.console import progress

PARTS = "parts"
"""Folder of what the jobs of a harvest leave."""
T = TypeVar("T")


def leave(folder: Path, job: int, part: Mapping[str, Any]) -> None:
    """Writes what a job leaves for `seal`. Raises UserError when the disk is full."""
    with _told(folder, (OSError,)):
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        write_json(folder / PARTS / f"{job}.json", part)


def seal(
    folder: Path,
    storage: Storage,
    parts: list[dict[str, Any]],
    spec: dict[str, Any],
    inputs: Mapping[str, Artifact],
    identity: dict[str, Any],
) -> None:
    """Publishes what the jobs of a harvest wrote; `parts` are what they left.

    `identity` says of which model, dataset and split, the length of a sequence, and what hooks mean. Raises DamagedArtifact when a shard
    is not as it was written, UserError when jobs are not of one harvest.
    """
    first = parts[0]
    if any(part["digest"] != first["digest"] for part in parts):
        raise UserError(f"{folder}: its jobs ran with other code or settings, other versions of libraries, or on other devices")
    if any(part != first for part in parts):
        raise UserError(
            f"{folder}: its jobs found different medians or sizes, so they ran on processors that compute differently, or with other code"
        )
    with _told(folder, (OSError, *storage.faults)):
        _sealed(folder, storage, first, len(parts), spec, inputs, identity)


@contextmanager
def _told(folder: Path, faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Says on one line what a disk or an object store refuses."""
    try:
        yield
    except faults as error:
        where = getattr(error, "filename", None) or folder
        raise UserError(f"{where}: {said(error)}; the shards stand, and it goes on from them when it is started again") from None


def _sealed(
    folder: Path,
    storage: Storage,
    part: dict[str, Any],
    jobs: int,
    spec: dict[str, Any],
    inputs: Mapping[str, Artifact],
    identity: dict[str, Any],
) -> None:
    facts_of_jobs = part["facts"]
    layout = Layout(**{**facts_of_jobs["layout"], "sparse": tuple(facts_of_jobs["layout"]["sparse"])})
    withdraw(folder, storage, spec, inputs)  # what it names changes from here on
    files: dict[str, Any] = {}
    total = merged(_checked(folder, storage, layout, part, files))
    _remove(storage, f"{STORE}/{STATISTICS}/")
    put(storage, documents(layout))
    store = zarr.open_group(storage.zarr(STORE), mode="r+")
    hooks = {hook: _hook(hook, layout, total, facts_of_jobs, store) for hook in layout.widths}
    for hook, about in identity["meanings"].items():
        hooks[hook]["about"] = about
    of = {key: identity[key] for key in ("model", "dataset", "split", "length")}
    attributes = {
        **of, "format": FORMAT, "dtype": layout.dtype, "rows": layout.rows, "shard_rows": layout.shard_rows,
        "index_chunk_rows": layout.chunk_rows["token"],
        "left_out": facts_of_jobs["left_out"], "hooks": hooks,
    }  # fmt: skip
    store.update_attributes({"saeflow": attributes})
    rest = [*documents(layout), *(name for name in storage.names() if name.startswith(f"{STORE}/{STATISTICS}/"))]
    for name in rest:
        storage.flush(name)
    files |= {name: {"size": storage.size(name), "sha256": storage.sha256(name)} for name in rest}
    _remove_others(folder, storage, files, jobs)
    facts = {
        "rows": layout.rows,
        "left_out": facts_of_jobs["left_out"]["positions"],
        "hooks": {h: _summary(one) for h, one in hooks.items()},
    }
    if not isinstance(storage, Folder):
        facts["location"] = storage.address
    publish(folder, "activations", spec, inputs, files, facts)


def _checked(folder: Path, storage: Storage, layout: Layout, part: dict[str, Any], files: dict[str, Any]) -> Iterator[Arrays]:
    """Sums of each shard in order, its files checked and put among `files`."""
    sinks = part["facts"]["sinks"]
    above = {hook: sinks[hook]["above"] if sinks else None for hook in layout.widths}

    def check(shard: int) -> tuple[Arrays, dict[str, Any]]:
        name = sums_file(shard)
        start, stop = layout.span(shard)
        try:
            arrays, about = read_sums(storage, layout, shard)
        except DamagedArtifact as error:
            raise DamagedArtifact(f"{error}; repair: {repair(folder / MANIFEST)}") from None
        except FileNotFoundError:
            raise DamagedArtifact(
                f"{storage.where(name)} (rows {start}-{stop - 1}): the file is missing; repair: {repair(folder / MANIFEST)}"
            ) from None
        if other := foreign(about, part["digest"], above):
            raise DamagedArtifact(f"{storage.where(name)} (rows {start}-{stop - 1}): {other}; repair: {repair(folder / MANIFEST)}")
        sha256: dict[str, str] = {}
        if fault := fault_of(storage, layout, shard, arrays, about["files"], sha256):
            raise DamagedArtifact(f"{fault}; repair: {repair(folder / MANIFEST)}")
        for one in about["files"]:
            storage.flush(one)  # not done as they are written: what a power cut takes from a shard, its hashes tell
        own = {
            "size": storage.size(name),
            "sha256": storage.sha256(name),
            "about": f"sums of rows {about['rows'][0]}-{about['rows'][1] - 1}",
        }
        files = {one: {"size": entry["size"], "sha256": sha256[one], "about": entry["about"]} for one, entry in about["files"].items()}
        return arrays, {**files, name: own}

    with progress("seal", layout.rows, "rows") as bar:
        for shard, (arrays, found) in enumerate(_ahead(check, layout.shards)):
            files |= found
            bar.advance(layout.span(shard)[1] - layout.span(shard)[0])
            yield arrays


def _ahead(work: Callable[[int], T], count: int) -> Iterator[T]:
    """Results of `work` on 0 .. count - 1, in order: done beside what takes them, but only a few more than are taken, since each may be
    large."""
    numbers = iter(range(count))
    with ThreadPoolExecutor(HASHED) as threads:
        doing: deque[Future[T]] = deque(threads.submit(work, number) for number in islice(numbers, HASHED + 1))
        while doing:
            yield doing.popleft().result()
            doing.extend(threads.submit(work, number) for number in islice(numbers, 1))


def _hook(hook: str, layout: Layout, total: Arrays, facts: dict[str, Any], store: zarr.Group) -> dict[str, Any]:
    """Attributes of a hook; its mean and covariance are written as arrays."""
    found = statistics(total, hook)
    for name in ("mean", "covariance"):
        if name in found:
            _write(store, f"{STATISTICS}/{hook}/{name}", found[name])
    sinks = {**facts["sinks"][hook], "rows": layout.rows - int(total[f"{hook}.rows"])} if facts["sinks"] else None
    return {
        "width": layout.widths[hook],
        "storage": "sparse" if hook in layout.sparse else "dense",
        "chunk_rows": layout.chunk_rows[hook],
        "mean_squared_norm": float(found["mean_squared_norm"]),
        "variance": float(found["variance"]),
        "stored": int(total[f"{hook}.stored"]),
        SINKS: sinks,
    }


def _write(store: zarr.Group, name: str, values: np.ndarray) -> None:
    made = store.create_array(
        name, shape=values.shape, dtype="float64", chunks=values.shape, compressors=[zarr.codecs.Crc32cCodec()], overwrite=True
    )
    made[...] = values


def _summary(hook: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a hook."""
    sinks = {"sinks": hook[SINKS]["rows"]} if hook[SINKS] else {}
    return {"width": hook["width"], **sinks, **({"stored": hook["stored"]} if hook["storage"] == "sparse" else {})}


def _remove(storage: Storage, under: str) -> None:
    """Removes all files whose names begin so."""
    for name in [name for name in storage.names() if name.startswith(under)]:
        storage.remove(name)


def _remove_others(folder: Path, storage: Storage, files: Mapping[str, Any], jobs: int) -> None:
    """Removes what earlier harvests left: where the store lies, and in the artifact's own folder."""
    beside = {MANIFEST, "run.json", *(f"{PARTS}/{job}.json" for job in range(jobs))}
    for place in (storage,) if isinstance(storage, Folder) else (storage, Folder(folder)):
        kept = {*files, *beside} if place is storage else beside
        # a step run by hand may publish anywhere: there only what is surely a store's is removed
        under = "" if isinstance(place, Folder) and folder.parts[0] == "results" else (f"{STORE}/", "sums/")
        for name in [name for name in place.names() if name not in kept and name.startswith(under)]:
            place.remove(name)
    for path in sorted((folder / STORE).rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
