"""Selection of a whole batch against torch.topk, as sets."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.saes import select


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
