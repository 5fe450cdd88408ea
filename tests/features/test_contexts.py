"""Contexts of latents against a search through all rows."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import MANIFEST
from pipeline.datasets import tokens
from pipeline.features.contexts import blocks
from pipeline.features.describe import describe

LATENTS = 5


class Straight:
    """An SAE whose latents are the hook's values."""

    W_dec = torch.zeros(LATENTS, LATENTS)

    def encode(self, x):
        return x


def search(values: np.ndarray, length: int, contexts: int, before: int, after: int) -> list[tuple]:
    """(latent, rank, sequence, strongest row, first row, values) of every context, by looking at every row."""
    starts = range(0, len(values), length)
    found = []
    for latent in range(values.shape[1]):
        best = []
        for sequence, start in enumerate(starts):
            inside = values[start : start + length, latent].tolist()
            peak = max(inside)
            if peak > 0:
                best.append((-peak, sequence, start + inside.index(peak)))
        for rank, (_, sequence, row) in enumerate(sorted(best)[:contexts]):
            first = max(sequence * length, row - before)
            last = min(sequence * length + length, len(values), row + after + 1)
            found.append((latent, rank, sequence, row, first, values[first:last, latent].tolist()))
    return found


@pytest.fixture
def contexts_of(make_store, make_tokens):
    """The same as the project finds them, in a store of token sequences. Token i is shown as the letter i."""

    def contexts_of(values, length: int, contexts: int, before: int, after: int, size: int, **store) -> list[tuple]:
        made = make_store(values, length=length, chunk_rows=64, shard_rows=64, batch=16, **store)
        spec = {"hook": "x", "batch": size, "contexts": contexts, "before": before, "after": after, "split": "train"}
        table = describe(Straight(), made, make_tokens(np.arange(202), 202, "shown"), spec)[1]
        first = {text: i for i, text in enumerate(tokens.text(np.arange(202), make_tokens(np.arange(202), 202, "letters")))}
        return [
            (c["latent"], c["rank"], c["sequence"], length * c["sequence"] + c["position"], first[c["tokens"][0]], c["activations"])
            for c in table.to_pylist()
        ]

    return contexts_of


def latents(rows: int, kind: str, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.random((rows, LATENTS)) * (generator.random((rows, LATENTS)) < 0.3)
    if kind == "ties":
        values = np.ceil(3 * values)
    values[:, 1] = 0  # never fires
    values[:, 2] *= np.arange(rows) == rows // 2  # fires once
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("size", [1, 10, 64, 1000])
@pytest.mark.parametrize("length", [1, 7, 30])
def test_contexts_are_those_of_a_search_through_all_rows(contexts_of, kind, size, length):
    values = latents(201, kind)
    assert contexts_of(values, length, 4, 3, 2, size) == search(values, length, 4, 3, 2)


@pytest.mark.parametrize(("contexts", "before", "after"), [(1, 0, 0), (3, 100, 100), (50, 0, 4), (50, 5, 0)])
def test_numbers_of_contexts_and_windows(contexts_of, contexts, before, after):
    values = latents(120, "distinct", seed=1)
    assert contexts_of(values, 9, contexts, before, after, 40) == search(values, 9, contexts, before, after)


def test_a_store_may_end_within_a_sequence(contexts_of):
    values = latents(60, "distinct")
    assert contexts_of(values, 7, 4, 3, 2, 16, rows=33) == search(values[:33], 7, 4, 3, 2)


def test_latents_that_never_fire_have_no_contexts(contexts_of):
    assert contexts_of(np.zeros((20, LATENTS)), 7, 4, 3, 2, 16) == []


def test_of_equal_values_the_earlier_sequence_stays_in_front(contexts_of):
    """However many are equal: a sort that is not stable would show any of them."""
    found = contexts_of(np.ones((200, LATENTS)), 1, 10, 0, 0, 64)
    assert [one[2] for one in found] == list(range(10)) * LATENTS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(size=st.integers(1, 80))
def test_blocks_are_whole_sequences_and_together_every_row(make_store, tmp_path, size):
    values = latents(61, "distinct")
    if not (tmp_path / "store" / MANIFEST).exists():
        make_store(values, length=7, chunk_rows=64, shard_rows=64, batch=16)
    found = list(blocks(ActivationStore(tmp_path / "store" / MANIFEST), "x", Straight(), size))
    assert torch.cat([block.latents_BM for block in found]).tolist() == values.tolist()
    assert [i for block in found for i in block.sequences.tolist()] == list(range(9))
    assert [n for block in found for n in block.lengths.tolist()] == [7] * 8 + [5]
    assert [block.start for block in found] == np.cumsum([0] + [len(block.latents_BM) for block in found])[:-1].tolist()
    assert max(len(block.latents_BM) for block in found) <= max(size, 7), "memory is bounded by the setting, and by one sequence"
