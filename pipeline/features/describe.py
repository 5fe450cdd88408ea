"""Describes the latents of an SAE: statistics of each, and the contexts in which it fires most strongly."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.activations.store import ActivationStore
from pipeline.activations.trace import check_source
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.console import progress
from pipeline.datasets import tables, tokens
from pipeline.features.contexts import Contexts, Strongest, blocks
from pipeline.features.statistics import LatentSums
from pipeline.saes.base import SAE


@torch.no_grad()
def describe(sae: SAE, store: ActivationStore, dataset: Artifact, spec: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """`latents` (one row each) and `contexts` (one row per latent and rank), of the rows that are flagged neither at the hook that
    is read nor, of a transcoder, at the one that is predicted.

    A context shows the text as it stands in the dataset, with 0 as the activation at tokens that are no rows of the store, or flagged.
    Raises UserError when the store is not of this dataset, or all its rows are flagged.
    """
    check_source(store, dataset)
    hooks, size = list(dict.fromkeys((spec["hook"], spec["output"]))), spec["batch"]
    strongest = Strongest(sae.W_dec.shape[0], spec["contexts"])
    sums: LatentSums | None = None
    with progress("describe", 2 * len(store), "rows") as bar:
        for block in blocks(store, hooks, sae, size):
            strongest.add(block)
            if block.kept is None or block.kept.any():
                found = LatentSums.of(block.latents_BM if block.kept is None else block.latents_BM[block.kept])
                sums = found if sums is None else sums + found
            bar.advance(len(block.latents_BM))
        if sums is None:
            raise UserError(
                f"hook {' or '.join(hooks)}: all {len(store):,} rows are flagged as attention sinks; record more rows, or raise sinks_above"
            )
        contexts = strongest.contexts(spec["before"], spec["after"], store)
        for block in blocks(store, hooks, sae, size):
            contexts.fill(block)
            bar.advance(len(block.latents_BM))
    return sums.finish(), _table(contexts, dataset, store.attributes["split"])


def _table(contexts: Contexts, dataset: Artifact, split: str) -> pa.Table:
    order = np.lexsort((contexts.rank, contexts.latent))
    sequence, lengths = contexts.sequence[order], contexts.length[order]
    places = np.arange(contexts.values.shape[1])
    inside = places < lengths[:, None]
    bounds = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    columns: dict[str, Any] = {
        "latent": pa.array(contexts.latent[order], pa.int32()),
        "rank": pa.array(contexts.rank[order], pa.int32()),
        "activation": contexts.values[order].max(axis=1, initial=0.0),
        "row": contexts.row[order],
        "sequence": sequence,
        "position": contexts.position[order],
        "activations": pa.ListArray.from_arrays(bounds, pa.array(contexts.values[order][inside], pa.float32())),
    }
    if dataset.facts["form"] == "tokens":
        shown = (contexts.split_positions()[order][:, None] + places)[inside]
        texts = tokens.text(tokens.read(dataset, split)[shown], dataset)
        columns["tokens"] = pa.ListArray.from_arrays(bounds, pa.array(texts, pa.string()))
    else:
        rows, target = tables.read(dataset, split)
        columns["input"] = pa.array(list(rows[sequence]), pa.list_(pa.float32()))
        columns["target"] = target[sequence]
    return pa.table(columns)
