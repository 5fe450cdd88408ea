"""Stores with a dense and a sparse hook, for the tests of the format and of damage."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.activations.store import ActivationStore
from tests.stores import harvested


class Both(nn.Module):
    """Hook `x` at token i is row i of a table, and `y` what of it is above zero."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__()
        self.rows = torch.from_numpy(rows.astype(np.float32))

    def forward(self, ids: Tensor, tap) -> Tensor:
        return tap("y", tap("x", self.rows[ids]).relu())


@pytest.fixture
def make_both(tmp_path, make_tokens) -> Callable[..., ActivationStore]:
    """A sealed store of `Both` in sequences of 5; `y` is kept sparse."""

    def make(rows: np.ndarray, name: str = "store", chunk_rows: int = 4, shard_rows: int = 8, **spec) -> ActivationStore:
        dataset = make_tokens(np.arange(len(rows) + 1), len(rows) + 1, f"{name}-ids")
        chosen = {"hooks": ["x", "y"], "sparse": ["y"], "chunk_rows": chunk_rows, "shard_rows": shard_rows, **spec}
        return harvested(tmp_path / name, Both(rows), dataset, 5, **chosen)

    return make


@pytest.fixture(autouse=True)
def default_study(monkeypatch):
    """Messages name no study."""
    monkeypatch.delenv("SAEFLOW_CONFIGFILES", raising=False)
