"""Makes an artifact of a harvested store: checks every shard, merges their sums in order, writes statistics and attributes, publishes."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.activations.layout import FORMAT, SINKS, STATISTICS, STORE, Layout, documents, put, sums_file
from pipeline.activations.sums import Arrays, merged, statistics
from pipeline.activations.writer import READERS, fault_of, read_sums
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, repair
from pipeline.artifacts.manifest import seal as publish
from pipeline.artifacts.storage import Folder, Storage
from pipeline.console import progress

PARTS = "parts"
"""Folder of what the jobs of a harvest leave."""


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
    if any(part != first for part in parts[1:]):
        raise UserError(
            f"{folder}: its jobs found different medians or sizes, so they ran on processors that compute differently, or with other code"
        )
    layout = Layout(**{**first["facts"]["layout"], "sparse": tuple(first["facts"]["layout"]["sparse"])})
    files: dict[str, Any] = {}
    total = merged(_checked(folder, storage, layout, first["digest"], files))
    _remove(storage, f"{STORE}/{STATISTICS}/")
    put(storage, documents(layout))
    store = zarr.open_group(storage.zarr(STORE), mode="r+")
    hooks = {hook: _hook(hook, layout, total, first["facts"], store) for hook in layout.widths}
    for hook, about in identity["meanings"].items():
        hooks[hook]["about"] = about
    of = {key: identity[key] for key in ("model", "dataset", "split", "length")}
    attributes = {
        **of, "format": FORMAT, "dtype": layout.dtype, "rows": layout.rows, "shard_rows": layout.shard_rows,
        "index_chunk_rows": layout.chunk_rows["token"],
        "left_out": first["facts"]["left_out"], "hooks": hooks,
    }  # fmt: skip
    store.update_attributes({"saeflow": attributes})
    rest = [*documents(layout), *(name for name in storage.names() if name.startswith(f"{STORE}/{STATISTICS}/"))]
    files |= {name: {"size": storage.size(name), "sha256": storage.sha256(name)} for name in rest}
    _remove_others(folder, storage, files, len(parts))
    facts = {
        "rows": layout.rows,
        "left_out": first["facts"]["left_out"]["positions"],
        "hooks": {h: _summary(one) for h, one in hooks.items()},
    }
    if not isinstance(storage, Folder):
        facts["location"] = storage.address
    publish(folder, "activations", spec, inputs, files, facts)


def _checked(folder: Path, storage: Storage, layout: Layout, digest: str, files: dict[str, Any]) -> Iterator[Arrays]:
    """Sums of each shard in order, its files checked and put among `files`."""

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
        if about["digest"] != digest:
            raise DamagedArtifact(f"{storage.where(name)}: of another harvest; repair: {repair(folder / MANIFEST)}")
        if fault := fault_of(storage, about["files"]):
            raise DamagedArtifact(f"{fault}; repair: {repair(folder / MANIFEST)}")
        for one in about["files"]:
            storage.flush(one)  # not done as they are written: what a power cut takes from a shard, its hashes tell
        own = {
            "size": storage.size(name),
            "sha256": storage.sha256(name),
            "about": f"sums of rows {about['rows'][0]}-{about['rows'][1] - 1}",
        }
        return arrays, {**about["files"], name: own}

    with progress("seal", layout.rows, "rows") as bar, ThreadPoolExecutor(READERS) as threads:
        for shard, (arrays, found) in enumerate(threads.map(check, range(layout.shards))):
            files |= found
            bar.advance(layout.span(shard)[1] - layout.span(shard)[0])
            yield arrays


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
