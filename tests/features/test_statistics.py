"""Statistics of latents, in plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.statistics import LatentSums


def test_by_hand():
    f = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 4.0, 1.0], [0.0, 0.0, 1.0]])
    assert LatentSums.of(f).finish().to_pylist() == [
        {"latent": 0, "density": 0.0, "mean": 0.0, "mean_active": None, "max": 0.0, "selectivity": None},
        {"latent": 1, "density": 0.5, "mean": 1.5, "mean_active": 3.0, "max": 4.0, "selectivity": 4 / 1.5},
        {"latent": 2, "density": 0.75, "mean": 0.75, "mean_active": 1.0, "max": 1.0, "selectivity": 1 / 0.75},
    ]


@st.composite
def latents(draw):
    seed, rows, width, share = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 40)), draw(st.integers(1, 10)), draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, width, generator=generator) * (torch.rand(rows, width, generator=generator) < share)


@given(latents(), st.lists(st.integers(1, 40), max_size=5))
def test_numbers_are_those_of_plain_loops_however_rows_are_cut(f, cuts):
    parts = [LatentSums.of(one) for one in f.tensor_split(sorted({cut for cut in cuts if cut < len(f)}))]
    table = sum(parts[1:], parts[0]).finish()
    for m, row in enumerate(table.to_pylist()):
        column = f[:, m].double().numpy()
        active = column[column != 0]
        assert row["latent"] == m
        assert row["density"] == len(active) / len(column)
        assert row["mean"] == pytest.approx(column.mean())
        assert row["max"] == column.max()
        assert row["mean_active"] == (pytest.approx(active.mean()) if len(active) else None)
        assert row["selectivity"] == (pytest.approx(column.max() / column.mean()) if len(active) else None)


def test_sums_are_float64():
    f = torch.full((100_000, 1), 0.1)
    parts = [LatentSums.of(one) for one in f.split(10)]
    (row,) = sum(parts[1:], parts[0]).finish().to_pylist()
    assert row["mean"] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-12)
