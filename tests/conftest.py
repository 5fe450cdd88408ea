"""Small artifacts that several tests need. Everything is made here, in temporary folders."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.datasets import tables, token_files
from tests.stores import harvested

settings.register_profile("project", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole workflows first: what workers take over from each other at the end are short tests then, and none waits for another."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads cost more than they give at these sizes."""
    torch.set_num_threads(1)


@pytest.fixture
def project() -> Path:
    """The project's folder."""
    return Path(__file__).parent.parent


@pytest.fixture
def data_folder() -> Path:
    """The folder of texts and models that tests may read; it is no part of the project."""
    folder = os.environ.get("SAEFLOW_DATA")
    if not folder:
        pytest.skip("the variable SAEFLOW_DATA names no data folder")
    return Path(folder)


@pytest.fixture
def make_table(tmp_path) -> Callable[..., Artifact]:
    """A published table: `make_table(rows)`, or `make_table(rows, target)`, or with the last `held_out` rows for validation."""

    def make(rows, target=None, name: str = "table", held_out: int = 0) -> Artifact:
        rows = np.asarray(rows, dtype=np.float32)
        target = np.zeros(len(rows)) if target is None else target
        with publishing(tmp_path / name, "dataset", {"kind": "given"}, {}) as draft:
            cut = len(rows) - held_out
            splits = {"train": (rows[:cut], target[:cut]), "validation": (rows[cut:], target[cut:])}
            tables.write(draft, splits if held_out else {"train": (rows, target)})
        return Artifact.open(tmp_path / name / MANIFEST)

    return make


@pytest.fixture
def make_tokens(tmp_path) -> Callable[..., Artifact]:
    """A published token stream: `make_tokens(ids)`, or with a second one as its validation split."""

    def make(ids, vocabulary: int = 256, name: str = "tokens", validation=None, special=()) -> Artifact:
        splits = {"train": ids} if validation is None else {"train": ids, "validation": validation}
        with publishing(tmp_path / name, "dataset", {"kind": "given"}, {}) as draft:
            files = {}
            for split, some in splits.items():
                files[split] = token_files.SplitFile(draft, split, vocabulary)
                files[split].add(np.asarray(some), np.array([len(some)]), np.array([True]))
                files[split].close()
            token_files.write_vocabulary(draft, [bytes([i % 256]) for i in range(vocabulary)], {})
            draft.facts |= token_files.facts(files, vocabulary, "bytes", list(special))
        return Artifact.open(tmp_path / name / MANIFEST)

    return make


class Passing(nn.Module):
    """A model whose hook `x` is its input."""

    def forward(self, inputs: Tensor, tap) -> Tensor:
        return tap("x", inputs)


class Lookup(nn.Module):
    """A model whose hook `x` at token i is row i of a table."""

    def __init__(self, rows) -> None:
        super().__init__()
        self.rows = torch.from_numpy(np.asarray(rows, dtype=np.float32))

    def forward(self, ids: Tensor, tap) -> Tensor:
        return tap("x", self.rows[ids])


@pytest.fixture
def make_store(tmp_path, make_table, make_tokens) -> Callable[..., ActivationStore]:
    """A sealed store whose hook `x` holds the given rows, as a table's or in token sequences of a given length."""

    def make(values, length: int | None = None, chunk_rows: int = 4, shard_rows: int = 8, name: str = "store", **spec) -> ActivationStore:
        values = np.asarray(values, dtype=np.float32)
        if length is None:
            dataset, model = make_table(values, name=f"{name}-rows"), Passing()
        else:
            dataset, model = make_tokens(np.arange(len(values) + 1), len(values) + 1, f"{name}-ids"), Lookup(values)
        chosen = {"chunk_rows": chunk_rows, "shard_rows": shard_rows, **spec}
        return harvested(tmp_path / name, model, dataset, length, **chosen)

    return make
