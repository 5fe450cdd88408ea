"""Shuffled batches: every row once an epoch, in an order that a seed decides, within the memory that is given."""

import numpy as np
import pytest
import torch

from pipeline.activations.loader import ActivationLoader

WIDTH = 4096
"""So wide that a mebibyte holds 64 rows."""
ROOM = 1


def rows_of(batches) -> list[int]:
    """Which rows came: the number of a row stands in its first place, times ten in its last."""
    numbers = []
    for batch in batches:
        assert torch.equal(batch[:, -1], 10 * batch[:, 0])
        numbers += batch[:, 0].int().tolist()
    return numbers


@pytest.fixture
def column(make_store):
    """A hook whose row i begins with i: `column(rows)`."""

    def column(rows: int, **sizes):
        values = np.zeros((rows, WIDTH), dtype=np.float32)
        values[:, 0] = np.arange(rows)
        values[:, -1] = 10 * np.arange(rows)
        return make_store(values, name=f"rows{rows}", **sizes)["x"]

    return column


CASES = [
    pytest.param(40, 7, 2048, id="in memory"),
    pytest.param(64, 64, ROOM, id="in memory, just"),
    pytest.param(40, 100, 2048, id="in memory, one batch"),
    pytest.param(65, 7, ROOM, id="chunked, just"),
    pytest.param(203, 10, ROOM, id="chunked, the last chunk partial"),
    pytest.param(192, 32, ROOM, id="chunked, even"),
    pytest.param(203, 1000, ROOM, id="chunked, batches as large as what is held"),
    pytest.param(129, 10, ROOM, id="chunked, one row in the last chunk"),
]


@pytest.mark.parametrize(("rows", "size", "memory"), CASES)
def test_every_row_comes_once_an_epoch(column, rows, size, memory):
    loader = ActivationLoader(column(rows), size, seed=0, memory_mb=memory)
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        assert sorted(rows_of(batches)) == list(range(rows))
        assert max(len(batch) for batch in batches) <= size
        assert len(batches) == loader.steps()


@pytest.mark.parametrize(("rows", "size", "memory"), CASES)
def test_the_order_is_a_function_of_seed_and_epoch(column, rows, size, memory):
    made = column(rows)

    def order(seed, epoch):
        return rows_of(ActivationLoader(made, size, seed, memory).epoch(epoch))

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert first != sorted(first)


def test_an_epoch_can_be_asked_for_again_and_alone(column):
    for rows in (40, 203):
        loader = ActivationLoader(column(rows), 10, seed=0, memory_mb=ROOM)
        third = rows_of(loader.epoch(2))
        list(loader.epoch(0))
        assert rows_of(loader.epoch(2)) == third


def test_batches_of_an_epoch_in_memory_are_equal_to_a_row(column):
    sizes = [len(batch) for batch in ActivationLoader(column(40), 7, seed=0, memory_mb=2048).epoch(0)]
    assert sorted(sizes) == [6, 6, 7, 7, 7, 7]


def test_the_exact_permutation_mixes_all_rows(column):
    """Rows that were next to each other in the store are not next to each other in the order."""
    order = rows_of(ActivationLoader(column(64), 8, seed=0, memory_mb=ROOM).epoch(0))
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.15
    half = order[:32]
    assert 8 < sum(row < 32 for row in half) < 24


def test_chunks_are_mixed_across_the_store_and_within_what_is_held(column):
    order = rows_of(ActivationLoader(column(203), 8, seed=0, memory_mb=ROOM).epoch(0))
    held = order[:32]  # eight chunks of four rows: half of what memory holds, since they are copied once
    assert len({row // 4 for row in held}) == 8
    assert max(held) - min(held) > 60, "chunks come from everywhere"
    assert held != sorted(held)
    assert np.mean(np.diff([row // 4 for row in held]) == 0) < 0.5, "rows of a chunk do not stay together"


def test_other_chunks_are_held_together_in_every_epoch(column):
    loader = ActivationLoader(column(203), 8, seed=0, memory_mb=ROOM)
    together = {frozenset(row // 4 for row in rows_of(loader.epoch(epoch))[:32]) for epoch in range(4)}
    assert len(together) == 4


def test_memory_is_bounded_by_the_setting(column, monkeypatch):
    made = column(203)
    read, largest = made.read, 0

    def counted(start, stop):
        nonlocal largest
        values = read(start, stop)
        largest = max(largest, values.nbytes)
        return values

    monkeypatch.setattr(made, "read", counted)
    loader = ActivationLoader(made, 8, seed=0, memory_mb=ROOM)
    held = loader.chunks_held * made.chunk_rows * WIDTH * 4
    assert 2 * held <= ROOM * 2**20
    list(loader.epoch(0))
    assert largest <= made.chunk_rows * WIDTH * 4, "the store is not read whole"


def test_each_row_is_read_once_an_epoch(column, monkeypatch):
    made = column(203)
    read, seen = made.read, []
    monkeypatch.setattr(made, "read", lambda start, stop: seen.append((start, min(stop, 203))) or read(start, stop))
    list(ActivationLoader(made, 8, seed=0, memory_mb=ROOM).epoch(0))
    assert sorted(row for start, stop in seen for row in range(start, stop)) == list(range(203))
