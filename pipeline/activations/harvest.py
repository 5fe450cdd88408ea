"""Records the outputs of some hooks over one split into the shards of a store, in one pass."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.activations import store
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, entry, write_json
from pipeline.console import progress
from pipeline.models.examples import Examples
from pipeline.models.hooks import record

Columns = dict[str, np.ndarray]


def harvest(model: torch.nn.Module, split: Examples, spec: dict[str, Any], folder: Path, identity: dict[str, Any]) -> None:
    """Writes the shards and, last, `harvest.json`: the files with their hashes, and the sums that `seal` merges.

    `spec` has hooks, batch, rows (a limit or None), chunk_rows, shard_rows. `identity` says of which model and dataset, and
    what hooks mean.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder / store.STORE, ignore_errors=True)
    hooks, shard_rows = spec["hooks"], spec["shard_rows"]
    rows = min(split.positions(), spec["rows"] or split.positions())
    group, widths = None, {}
    files: dict[str, Any] = {}
    sums = []
    with progress("harvest", rows, "rows") as bar:
        for number, block in enumerate(_shards(_recorded(model, split, hooks, spec["batch"]), rows, shard_rows)):
            if group is None:
                widths = {hook: block[hook].shape[1] for hook in hooks}
                group = store.create(folder, widths, rows, spec["chunk_rows"], shard_rows)
            start = number * shard_rows
            stop = start + len(block["token"])
            for name, values in block.items():
                if name in hooks and not np.isfinite(values).all():
                    bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
                    raise UserError(f"hook {name} is not finite at sequence {block['sequence'][bad]}, position {block['position'][bad]}")
                group[name][start:stop] = values  # type: ignore[index]
                file = store.shard_file(name, number, values.ndim)
                files[file] = entry(folder / file, about=f"rows {start}-{stop - 1} of {name}")
            sums.append({hook: _sums(block[hook]) for hook in hooks})
            bar.advance(stop - start)
    for name in [*hooks, *store.INDEX]:
        file = f"{store.STORE}/{name}/zarr.json"
        files[file] = entry(folder / file)
    write_json(folder / store.PART, {"files": files, "sums": sums, "rows": rows, "widths": widths, "identity": identity})


def _sums(values: np.ndarray) -> dict[str, Any]:
    exact = values.astype(np.float64)
    return {"sum": exact.sum(axis=0).tolist(), "square": float(np.square(exact).sum())}


@torch.no_grad()
def _recorded(model: torch.nn.Module, split: Examples, hooks: list[str], size: int) -> Iterator[Columns]:
    """Hooks and index of each batch, positions flattened to rows."""
    for batch in split.batches(size):
        found = record(model, batch.inputs, hooks)
        tokens = batch.inputs.ndim == 2 and not batch.inputs.is_floating_point()
        length = batch.inputs.shape[1] if tokens else 1
        yield {
            **{hook: found[hook].reshape(-1, found[hook].shape[-1]).numpy() for hook in hooks},
            "token": batch.inputs.flatten().numpy() if tokens else np.full(len(batch.inputs), -1),
            "sequence": np.repeat(np.array(batch.sequences), length),
            "position": np.tile(np.arange(length), len(batch.sequences)),
        }


def _shards(batches: Iterator[Columns], rows: int, shard_rows: int) -> Iterator[Columns]:
    """The same rows, regrouped into shards; stops at `rows`."""
    waiting: list[Columns] = []
    held = sent = 0
    for batch in batches:
        waiting.append(batch)
        held += len(batch["token"])
        while held >= min(shard_rows, rows - sent) > 0:
            whole = {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}
            size = min(shard_rows, rows - sent)
            yield {name: values[:size] for name, values in whole.items()}
            waiting = [{name: values[size:] for name, values in whole.items()}]
            held, sent = held - size, sent + size
        if sent == rows:
            return
