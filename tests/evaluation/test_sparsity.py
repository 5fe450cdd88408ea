"""How often latents fire, counted by hand and in plain loops."""

from math import log10

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.sparsity import DENSITY_BINS, Sparsity


def test_by_hand():
    f = torch.tensor([[0.0, 0.5, 0.0, 2.0], [0.0, 0.5, 0.01, 0.0], [0.0, 0.02, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]])
    found = Sparsity.of(f, active_above=0.1).finish(0.1)
    assert found["l0"] == 6 / 4
    assert found["l0_above"] == 4 / 4
    assert found["active_above"] == 0.1
    assert found["dead"] == 1 / 4
    assert found["density"]["never"] == 1
    counts = dict(zip(DENSITY_BINS, found["density"]["counts"], strict=False))
    assert {edge: count for edge, count in counts.items() if count} == {-0.25: 1, -0.75: 2}  # always; twice a quarter, 10 ** -0.6


@st.composite
def latents(draw):
    seed, rows, width, share = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 60)), draw(st.integers(1, 20)), draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) * (torch.rand(rows, width, generator=generator) < share)


@given(latents(), st.floats(0, 2))
def test_counts_are_those_of_plain_loops(f, above):
    rows = f.tolist()
    found = Sparsity.of(f, above).finish(above)
    fires = [sum(row[m] != 0 for row in rows) for m in range(f.shape[1])]
    assert found["l0"] == pytest.approx(sum(fires) / len(rows))
    assert found["l0_above"] == pytest.approx(sum(x > torch.tensor(above).item() for row in rows for x in row) / len(rows))
    assert found["dead"] == pytest.approx(fires.count(0) / len(fires))
    edges = found["density"]["log10_edges"]
    expected = [0] * (len(edges) - 1)
    for fired in filter(None, fires):
        at = log10(fired / len(rows))
        expected[max(i for i, edge in enumerate(edges[:-1]) if edge <= at)] += 1
    assert found["density"]["counts"] == expected
    assert found["density"]["never"] + sum(expected) == len(fires)


@given(latents(), st.lists(st.integers(1, 60), max_size=5))
def test_the_cut_into_batches_does_not_count(f, cuts):
    whole = Sparsity.of(f, 0.5).finish(0.5)
    cuts = sorted({cut for cut in cuts if cut < len(f)})
    parts = [Sparsity.of(one, 0.5) for one in f.tensor_split(cuts)]
    assert sum(parts[1:], parts[0]).finish(0.5) == whole


def test_rarer_than_the_histogram_reaches_is_in_its_first_bin():
    rare = Sparsity(rows=10**8, fired_M=torch.tensor([1, 10**8]), above=0)
    counts = rare.finish(0.0)["density"]["counts"]
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)


def test_latents_that_are_all_dead():
    found = Sparsity.of(torch.zeros(5, 3), 0.0).finish(0.0)
    assert (found["l0"], found["dead"], found["density"]["never"], sum(found["density"]["counts"])) == (0, 1, 3, 0)
