"""Selection against torch.topk, as sets, and selection in bfloat16 against the exact product."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.saes import select


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [(7, 256, 3), (5, 256, 4), (5, 256, 9), (4, 250, 3), (3, 32, 1), (2, 64, 64), (1, 4096, 32), (6, 5, 5)]


@pytest.mark.parametrize(("rows", "latents", "k"), SHAPES)
def test_rows_are_those_of_topk(rows, latents, k):
    pre = random(rows, latents)
    assert torch.equal(select.rows(pre, k).sort(1).values, pre.topk(k).indices.sort(1).values)


def test_rows_are_those_of_topk_where_the_largest_share_a_block():
    pre = random(6, 512)
    pre[:, 64:96] += 10
    pre[3] -= 100
    assert torch.equal(select.rows(pre, 8).sort(1).values, pre.topk(8).indices.sort(1).values)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_rows_with_equal_values_have_k_latents_of_the_largest_values(k):
    pre = random(50, 512).mul(2).round()
    pre[0] = 0
    found = select.rows(pre, k)
    assert all(len(row.unique()) == k for row in found)
    assert torch.equal(pre.gather(1, found).sort(1).values, pre.topk(k).values.sort(1).values)


def test_rows_that_are_not_numbers_are_no_error():
    """A run that diverges is to say so itself."""
    pre = random(4, 512)
    pre[1], pre[2, 5] = torch.nan, torch.nan
    found = select.rows(pre, 3)
    assert found.shape == (4, 3)
    assert 5 in found[2]


@pytest.mark.parametrize(("rows", "latents", "count"), [(7, 256, 20), (7, 256, 1), (5, 250, 40), (3, 32, 90), (64, 512, 64 * 4)])
def test_a_batch_keeps_the_largest_positive_values_of_all_rows(rows, latents, count):
    pre = random(rows, latents)
    active, smallest = select.batch(pre, count)
    kept = pre.flatten().topk(count)
    expected = torch.zeros(rows * latents, dtype=torch.bool).index_fill_(0, kept.indices[kept.values > 0], True).view(rows, latents)
    assert torch.equal(active.dense(torch.ones(len(active.index))).bool(), expected)
    assert torch.equal(active.row.diff() >= 0, torch.ones(len(active.row) - 1, dtype=torch.bool))
    assert smallest == pre[expected].min()


def test_a_batch_keeps_no_value_that_is_not_positive():
    for pre in (-random(4, 256).abs(), torch.zeros(4, 256)):
        active, smallest = select.batch(pre, 10)
        assert len(active.index) == 0
        assert smallest == 0
    pre = -random(4, 256).abs()
    pre[2, 7] = 0.5
    active, smallest = select.batch(pre, 10)
    assert (active.row.tolist(), active.index.tolist(), smallest.item()) == ([2], [7], 0.5)


def test_of_equal_values_at_the_edge_a_batch_keeps_the_first_by_row_and_latent():
    pre = torch.zeros(3, 256)
    pre[0, 4], pre[1, 9], pre[2, 0], pre[2, 255] = 1.0, 1.0, 2.0, 1.0
    active, smallest = select.batch(pre, 3)
    assert (active.row.tolist(), active.index.tolist(), smallest.item()) == ([0, 1, 2], [4, 9, 0], 1.0)


@pytest.mark.parametrize(("rows", "latents"), [(64, 512), (64, 500)])
def test_a_batch_rounded_to_bfloat16_keeps_as_many_as_it_is_told(rows, latents):
    pre = random(rows, latents).bfloat16().float()
    active, smallest = select.batch(pre, 64 * 4)
    assert (pre == smallest).sum() > 1
    assert len(active.index) == 64 * 4
    assert torch.equal(pre[active.row, active.index].sort().values, pre.flatten().topk(64 * 4).values.sort().values)


@pytest.mark.parametrize("latents", [256, 250])
@pytest.mark.parametrize("numbers", [1, 40])
def test_a_batch_keeps_what_is_no_number(latents, numbers):
    pre = random(7, latents)
    pre[3, :numbers] = torch.nan
    active, smallest = select.batch(pre, 20)
    assert pre[active.row, active.index].isnan().sum() == numbers
    assert not smallest.isnan()
    assert len(active.index) == max(20, numbers)


def shared(parts: list[torch.Tensor], count: int) -> list:
    """What processes find that share a batch, each a thread here."""
    meeting, given = threading.Barrier(len(parts), timeout=300), [torch.empty(0)] * len(parts)

    def process(rank: int):
        def gathered(value: torch.Tensor) -> torch.Tensor:
            given[rank] = value
            meeting.wait()
            joined = torch.cat(given)
            meeting.wait()
            return joined

        return select.batch(parts[rank], count, gathered, rank)

    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(process, range(len(parts))))


@pytest.mark.parametrize("ties", [False, True])
def test_processes_that_share_a_batch_keep_what_one_would(ties):
    pre, count = random(10, 512), 600
    pre = pre.bfloat16().float() if ties else pre
    whole, edge = select.batch(pre, count)
    assert ((pre == edge).sum() > 1) == ties
    found = shared(list(pre.split([5, 3, 2])), count)
    assert all(smallest == edge for _, smallest in found)
    mask = torch.cat([active.dense(torch.ones(len(active.index))) for active, _ in found])
    assert torch.equal(mask, whole.dense(torch.ones(len(whole.index))))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("latents", "k"), [(1024, 8), (50, 8), (8, 8)])
def test_values_of_latents_selected_in_bfloat16_are_exact(latents, k, signed):
    x, W_enc, b_enc = random(40, 16), random(latents, 16, seed=1).T, random(latents, seed=2)
    active, values = select.screened(x, W_enc, b_enc, k, signed)
    exact = (x.double() @ W_enc.double() + b_enc).float()
    torch.testing.assert_close(values, exact[active.row, active.index], rtol=1e-5, atol=1e-5)
    kept = exact.topk(k)
    expected = torch.zeros_like(exact, dtype=torch.bool).scatter(1, kept.indices, signed | (kept.values > 0))
    found = active.dense(torch.ones_like(values)).bool()
    assert (found != expected).sum() <= 0.01 * expected.sum()
    assert found.sum(1).amax() <= k
    assert signed or (values > 0).all()


def test_selection_in_bfloat16_withstands_an_offset_that_b_enc_cancels():
    x, W_enc = random(40, 16) + 1000, random(1024, 16, seed=1).T
    b_enc = random(1024, seed=2) - 1000 * W_enc.sum(0)
    active, values = select.screened(x, W_enc, b_enc, 8, False)
    exact = x.double() @ W_enc.double() + b_enc.double()
    expected = torch.zeros_like(exact, dtype=torch.bool).scatter(1, exact.topk(8).indices, True)
    assert (active.dense(torch.ones_like(values)).bool() != expected).sum() <= 0.01 * expected.sum()


def test_selection_in_bfloat16_tells_apart_what_bfloat16_cannot():
    """Pre-activations 1 and 1 + 2^-10 are one number in bfloat16."""
    W_enc = torch.zeros(1, 512)
    W_enc[0, 100:106] = 1 + 2.0**-10 * torch.arange(6)
    active, values = select.screened(torch.ones(1, 1), W_enc, torch.zeros(512), 2, False)
    assert sorted(active.index.tolist()) == [104, 105]
    assert sorted(values.tolist()) == [1 + 4 * 2.0**-10, 1 + 5 * 2.0**-10]
