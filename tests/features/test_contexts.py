"""Contexts of latents against a search through all rows."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.activations.store import ActivationStore
from pipeline.activations.trace import trace
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.datasets import tokens
from pipeline.features.contexts import blocks
from pipeline.features.describe import describe
from tests.conftest import Lookup
from tests.stores import harvested

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
def contexts_of(make_store, tmp_path):
    """The same as the project finds them, in a store of token sequences all positions of which are rows. Row i is of token i."""

    def contexts_of(values, length: int, contexts: int, before: int, after: int, size: int, **store) -> list[tuple]:
        made = make_store(values, length=length, chunk_rows=64, shard_rows=64, batch=16, sinks_above=None, **store)
        spec = {"hook": "x", "output": "x", "batch": size, "contexts": contexts, "before": before, "after": after}
        dataset = Artifact.open(tmp_path / "store-ids" / MANIFEST)
        table = describe(Straight(), made, dataset, spec)[1]
        first = {text: i for i, text in enumerate(tokens.text(np.arange(dataset.facts["vocabulary"]), dataset))}
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


SPECIAL, SINK = 0, 9


@pytest.fixture
def gappy(tmp_path, make_tokens):
    """A store that leaves out the special token of a text and flags another, and the dataset: `gappy(length, ...)`."""

    def gappy(length: int, **settings) -> tuple[ActivationStore, Artifact]:
        chance = np.random.default_rng(2)
        ids = chance.choice(10, 121, p=[0.2, *[0.09] * 8, 0.08])
        rows = chance.random((10, LATENTS)) * (chance.random((10, LATENTS)) < 0.6)
        rows[SINK] = 1000
        dataset = make_tokens(ids, 10, special=[SPECIAL])
        return harvested(tmp_path / "store", Lookup(rows), dataset, length, chunk_rows=16, shard_rows=32, **settings), dataset

    return gappy


@pytest.mark.parametrize("length", [1, 7, 30, 500])
@pytest.mark.parametrize(("before", "after"), [(3, 2), (0, 100)])
@pytest.mark.parametrize("settings", [{}, {"rows": 50}])
def test_windows_are_the_text_as_it_stands_with_nothing_at_what_is_left_out_or_flagged(gappy, length, before, after, settings):
    store, dataset = gappy(length, **settings)
    ids = np.asarray(tokens.read(dataset, "train"))[:-1]
    sequence, position = (store[name].read(0, len(store)) for name in ("sequence", "position"))
    places = length * sequence + position
    values = np.zeros((places[-1] + 1, LATENTS), dtype=np.float32)  # every position up to the last row
    values[places] = np.where(store["token"].read(0, len(store))[:, None] == SINK, 0, store["x"].read(0, len(store)))
    spec = {"hook": "x", "output": "x", "batch": 20, "contexts": 4, "before": before, "after": after}
    latents, contexts = describe(Straight(), store, dataset, spec)
    found = contexts.to_pylist()
    expected = search(values, length, 4, before, after)
    shown = tokens.text(ids, dataset)
    assert [(c["latent"], c["rank"], c["sequence"], length * c["sequence"] + c["position"], c["activations"]) for c in found] == [
        (latent, rank, number, at, window) for latent, rank, number, at, _, window in expected
    ]
    assert [c["tokens"] for c in found] == [shown[first : first + len(window)] for *_, first, window in expected]
    assert all(c["activation"] < 1 for c in found), "a sink would be 1000"
    for one, place in zip(found, trace(store, dataset, contexts["row"].to_numpy()), strict=True):
        assert (place.sequence, place.position) == (one["sequence"], one["position"])
    kept = ~np.isin(ids[: len(values)], [SPECIAL, SINK])
    np.testing.assert_allclose(latents["density"], (values[kept] != 0).mean(0))
    np.testing.assert_allclose(latents["mean"], values[kept].mean(0, dtype=np.float64))
    assert latents["max"].to_pylist() == values[kept].max(0).tolist()
    assert store["x"].kept_rows() == kept.sum() < len(store) < len(values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(size=st.integers(1, 80))
def test_blocks_are_whole_sequences_and_together_every_row(make_store, tmp_path, size):
    values = latents(61, "distinct")
    if not (tmp_path / "store" / MANIFEST).exists():
        make_store(values, length=7, chunk_rows=64, shard_rows=64, batch=16)
    found = list(blocks(ActivationStore(tmp_path / "store" / MANIFEST), ["x"], Straight(), size))
    assert torch.cat([block.latents_BM for block in found]).tolist() == values.tolist()
    assert [i for block in found for i in block.sequences.tolist()] == list(range(9))
    assert [n for block in found for n in block.lengths.tolist()] == [7] * 8 + [5]
    assert [block.start for block in found] == np.cumsum([0] + [len(block.latents_BM) for block in found])[:-1].tolist()
    assert max(len(block.latents_BM) for block in found) <= max(size, 7), "memory is bounded by the setting, and by one sequence"
