"""Describes the latents of an SAE: statistics of each, and the contexts in which it fires most strongly."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import Artifact
from pipeline.console import progress
from pipeline.datasets import tables, tokens
from pipeline.features.contexts import Contexts, Strongest, blocks
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
        contexts = strongest.contexts(spec["before"], spec["after"])
        for block in blocks(store, hook, sae, size):
            contexts.fill(block)
            bar.advance(len(block.latents_BM))
    assert sums is not None
    return sums.finish(), _table(contexts, store, dataset, spec["split"])


def _table(contexts: Contexts, store: ActivationStore, dataset: Artifact, split: str) -> pa.Table:
    order = np.lexsort((contexts.rank, contexts.latent))
    windows = [contexts.values[at, : contexts.length[at]] for at in order]
    columns: dict[str, Any] = {
        "latent": pa.array(contexts.latent[order], pa.int32()),
        "rank": pa.array(contexts.rank[order], pa.int32()),
        "activation": contexts.values[order].max(axis=1, initial=0.0),
        "sequence": contexts.sequence[order],
        "position": store["position"].read(0, len(store))[contexts.row[order]],
        "activations": pa.array(windows, pa.list_(pa.float32())),
    }
    if dataset.facts["form"] == "tokens":
        ids = store["token"].read(0, len(store))
        texts = [
            tokens.text(ids[start : start + length], dataset)
            for start, length in zip(contexts.start[order], contexts.length[order], strict=True)
        ]
        columns["tokens"] = pa.array(texts, pa.list_(pa.string()))
    else:
        rows, target = tables.read(dataset, split)
        columns["input"] = pa.array(list(rows[contexts.sequence[order]]), pa.list_(pa.float32()))
        columns["target"] = target[contexts.sequence[order]]
    return pa.table(columns)
