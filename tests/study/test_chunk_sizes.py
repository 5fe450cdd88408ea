"""Rows of chunks: the largest that divide a shard, and the nearest shard that has good ones."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.study.chunk_sizes import dividing, power, undivided, wanted


@given(st.integers(1, 3000), st.integers(1, 500))
@settings(deadline=None)
def test_the_nearest_that_will_do_is_the_nearest(shard, most):
    def good(rows: int) -> bool:
        return 4 * max(size for size in range(1, min(most, rows) + 1) if rows % size == 0) >= min(most, rows)

    problem = undivided(shard, {"x": most})
    assert (problem is None) == good(shard)
    if problem:
        near = int(re.search(r"will do is (\d+)", problem)[1])
        assert good(near)
        assert not any(good(one) for one in range(max(1, shard - abs(near - shard) + 1), shard + abs(near - shard)))


def test_the_nearest_suits_all_hooks():
    near = int(re.search(r"will do is (\d+)", undivided(100_003, {"x": 512, "y": 64, "token": 2**14}))[1])
    assert undivided(near, {"x": 512, "y": 64, "token": 2**14}) is None


def test_sizes_are_powers_of_two_or_what_divides():
    assert [power(one) for one in (0.3, 1, 2, 3, 4, 1023.9)] == [1, 1, 2, 2, 4, 512]
    assert [wanted(one) for one in (2**10, 2**10 + 1, 2**21)] == [2**10, 2**9, 1]
    assert [dividing(12, most) for most in (1, 5, 6, 100)] == [1, 4, 6, 12]
