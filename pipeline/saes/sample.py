"""A fixed sample of the rows of a store, without a pass over all of them."""

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore

PLACES = 256
"""Places, spread evenly, at which runs of rows are read: a chunk holds hundreds of rows, and each is read whole."""


def sample(store: ActivationStore, hooks: list[str], count: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Up to `count` rows (N, width) of each hook, float32, the same rows of all; those that are flagged for any of them are left out."""
    total = len(store)
    count = min(count, total)
    ends = np.linspace(0, count, min(PLACES, count) + 1).astype(int)
    found: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
    columns = {hook: store[hook] for hook in hooks}
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        start = first * total // count
        stop = start + last - first
        masks = [kept for column in columns.values() if (kept := column.kept(start, stop)) is not None]
        for hook, column in columns.items():
            rows = column.read(start, stop)
            found[hook].append(rows[np.logical_and.reduce(masks)] if masks else rows)
    return {hook: torch.from_numpy(np.concatenate(parts)).to(device) for hook, parts in found.items()}
