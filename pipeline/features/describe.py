"""Describes the latents of an SAE: statistics of each, and the contexts in which it fires most strongly."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import Artifact
from pipeline.console import progress
from pipeline.datasets import tables, tokens
from pipeline.features.contexts import Context, Strongest, blocks, read
from pipeline.features.statistics import LatentSums
from pipeline.saes.base import SAE


@torch.no_grad()
def describe(sae: SAE, store: ActivationStore, dataset: Artifact, spec: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """`latents` (one row each) and `contexts` (one row per latent and rank)."""
    hook, size = spec["hook"], spec["batch"]
    strongest = Strongest(sae.W_dec.shape[0], spec["contexts"])
    sums: LatentSums | None = None
    with progress("describe", 2 * len(store), "rows") as bar:
        for block in blocks(store, hook, sae, size):
            strongest.add(block)
            found = LatentSums.of(block.latents_BM)
            sums = found if sums is None else sums + found
            bar.advance(len(block.latents_BM))
        pairs = strongest.pairs()
        contexts: list[Context] = []
        for block in blocks(store, hook, sae, size):
            contexts.extend(read(block, pairs, spec["before"], spec["after"]))
            bar.advance(len(block.latents_BM))
    assert sums is not None
    contexts.sort(key=lambda context: (context.latent, context.rank))
    return sums.finish(), _table(contexts, store, dataset, spec["split"])


def _table(contexts: list[Context], store: ActivationStore, dataset: Artifact, split: str) -> pa.Table:
    columns: dict[str, Any] = {
        "latent": pa.array([context.latent for context in contexts], pa.int32()),
        "rank": pa.array([context.rank for context in contexts], pa.int32()),
        "activation": pa.array([float(context.values.max()) for context in contexts], pa.float32()),
        "sequence": pa.array([context.sequence for context in contexts], pa.int64()),
        "position": pa.array(_read_at(store, "position", [context.row for context in contexts]), pa.int32()),
        "activations": pa.array([context.values for context in contexts], pa.list_(pa.float32())),
    }
    if dataset.facts["form"] == "tokens":
        ids = store["token"].read(0, len(store))
        windows = [
            tokens.text(ids[context.start : context.start + len(context.values)], dataset.facts["tokenizer"]) for context in contexts
        ]
        columns["tokens"] = pa.array(windows, pa.list_(pa.string()))
    else:
        rows, target = tables.read(dataset, split)
        at = [context.sequence for context in contexts]
        columns["input"] = pa.array(list(rows[at]), pa.list_(pa.float32()))
        columns["target"] = pa.array(target[at], pa.float32())
    return pa.table(columns)


def _read_at(store: ActivationStore, index: str, rows: list[int]) -> np.ndarray:
    return store[index].read(0, len(store))[rows]
