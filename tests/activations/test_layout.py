"""Sizes of chunks and shards: what a store gets when a study names none, and what it is refused."""

import pytest

from pipeline.activations.layout import Layout
from pipeline.artifacts.errors import UserError
from tests.stores import settings


def test_shards_of_many_hooks_fit_the_default_memory():
    hooks = {f"blocks.{i}.resid_post": 768 for i in range(12)}
    layout = Layout.of(20_000_000, hooks, settings(hooks=list(hooks)))
    assert sum(layout.shard_rows * width * 4 for width in hooks.values()) <= 2**29
    assert layout.held_bytes() <= 2**31
    assert layout.shard_rows == 2**13


@pytest.mark.parametrize(("rows", "widths", "expected"), [(20_000_000, [768], 2**16), (1_000_000, [768, 768], 2**13), (100, [8], 2**19)])
def test_shards_of_a_few_hooks_are_as_the_widest_asks_for(rows, widths, expected):
    hooks = {f"h{i}": width for i, width in enumerate(widths)}
    assert Layout.of(rows, hooks, settings(hooks=list(hooks))).shard_rows == expected


@pytest.mark.parametrize("rows", [100_000, 98_304, 8192, 10, 1])
def test_a_shard_that_good_chunks_divide_is_taken(rows):
    layout = Layout.of(10**6, {"x": 512}, settings(shard_rows=rows))
    assert layout.shard_rows == rows
    assert all(
        rows % chunk == 0 and 4 * chunk >= min(wanted, rows) for chunk, wanted in zip(layout.chunk_rows.values(), [512, 2**14], strict=True)
    )


def test_a_shard_that_only_chunks_of_a_few_rows_divide_is_refused_with_the_nearest():
    with pytest.raises(
        UserError, match=r"^shard_rows: 100,003 rows .* suit x: .* is 1; the nearest that will do is 100005, or give chunk_rows$"
    ):
        Layout.of(10**6, {"x": 512}, settings(shard_rows=100_003))
    Layout.of(10**6, {"x": 512}, settings(shard_rows=100_005))
    Layout.of(10**6, {"x": 512}, settings(shard_rows=100_003, chunk_rows=1))
