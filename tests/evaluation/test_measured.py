"""The positions that are measured, against the store's own index read whole."""

import numpy as np
import pytest

from pipeline.evaluation.measured import Measured
from tests.conftest import Lookup
from tests.stores import harvested

WIDTH = 3


@pytest.fixture
def make_measured(tmp_path, make_tokens):
    """Rows of a random text in which token 0 is special and token 9 is an attention sink."""

    def make(length: int, **settings):
        ids = np.random.default_rng(1).integers(0, 10, 72)
        model = Lookup(np.random.default_rng(0).normal(size=(10, WIDTH)) * (1 + 1000 * (np.arange(10) == 9))[:, None])
        settings = {"chunk_rows": 4, "shard_rows": 8, **settings}
        return harvested(tmp_path / "store", model, make_tokens(ids, 10, special=[0]), length, **settings), ids[:-1]

    return make


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("length", [1, 6, 7, 200])
@pytest.mark.parametrize("settings", [{}, {"sinks_above": None}, {"leave_out": "none"}, {"rows": 30}])
def test_they_are_the_rows_that_are_not_flagged(make_measured, length, size, settings):
    store, ids = make_measured(length, **settings)
    measured = Measured(store, "x")
    assert measured.sequences == store["sequence"].read(0, len(store))[-1] + 1
    ids = ids[: measured.sequences * length]
    out = [0] * (settings.get("leave_out") != "none") + [9] * ("sinks_above" not in settings)
    expected = ~np.isin(ids, out)
    if "rows" in settings:
        expected &= np.cumsum(ids != 0) <= 30
    whole = len(ids) // length  # the shorter last window is a batch of its own
    batches = [(range(start, min(start + size, whole)), length) for start in range(0, whole, size)]
    batches += [(range(whole, whole + 1), len(ids) % length)] if len(ids) % length else []
    found = [measured.at(some, positions).flatten() for some, positions in batches]
    assert np.array_equal(np.concatenate(found), expected)
    assert expected.sum() == store["x"].kept_rows() > 0
    assert measured.left_out == sum(ids[: np.flatnonzero(expected)[-1]] == 0) * (settings.get("leave_out") != "none")
    assert not expected.all() or settings == {"leave_out": "none", "sinks_above": None}


def test_no_more_of_the_index_is_held_than_the_sequences_and_a_chunk(make_measured):
    store, _ = make_measured(6)
    measured = Measured(store, "x")
    held = []
    for start in range(0, measured.sequences - 1, 2):
        measured.at(range(start, start + 2), 6)
        held.append(len(measured._sequence))
    assert 0 < max(held) <= 4


def test_sequences_may_be_passed_over(make_measured):
    store, ids = make_measured(6)
    measured = Measured(store, "x")
    for start in (3, 7):
        assert np.array_equal(measured.at(range(start, start + 2), 6).flatten(), ~np.isin(ids[6 * start : 6 * start + 12], [0, 9]))
