"""The two tables that describe an SAE's latents: what they say of a context is what stands there."""

import numpy as np
import pytest
import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.datasets import tables
from pipeline.features.describe import describe
from pipeline.saes import checkpoint
from tests.stores import harvested

SPEC = {"hook": "x", "output": "x", "batch": 16, "contexts": 3, "before": 2, "after": 1}


@pytest.fixture
def sae():
    """Latent m is place m of the hook, where that is positive."""
    found, _ = checkpoint.build({"architecture": "relu", "latents": 3, "subtract_b_dec": False}, 3)
    with torch.no_grad():
        found.W_enc.copy_(torch.eye(3))
    return found


def values(rows: int) -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    found[:, 1] = -1
    return found


@pytest.fixture
def make_text(make_store, tmp_path):
    """A store of token sequences of 9, and its dataset."""

    def make_text(given: np.ndarray, **settings) -> tuple[ActivationStore, Artifact]:
        store = make_store(given, length=9, chunk_rows=64, shard_rows=64, **settings)
        return store, Artifact.open(tmp_path / "store-ids" / MANIFEST)

    return make_text


def test_contexts_in_text_show_the_tokens_around_the_strongest(make_text, sae):
    """Token i of the stream is the number i, so that a window's tokens say where it is."""
    given = values(70)
    store, text = make_text(given)
    latents, contexts = describe(sae, store, text, SPEC)
    assert latents["density"].to_pylist() == pytest.approx([(given[:, m] > 0).mean() for m in range(3)])
    assert set(contexts["latent"].to_pylist()) == {0, 2}
    for one in contexts.to_pylist():
        row = 9 * one["sequence"] + one["position"]
        assert one["activation"] == given[row, one["latent"]] == given[9 * one["sequence"] : 9 * one["sequence"] + 9, one["latent"]].max()
        window = range(max(9 * one["sequence"], row - 2), min(row + 2, 9 * one["sequence"] + 9, 70))
        assert one["tokens"] == [chr(i) for i in window]
        assert one["activations"] == [max(0.0, given[i, one["latent"]]) for i in window]
    for latent in (0, 2):
        strongest = sorted((given[s : s + 9, latent].max() for s in range(0, 70, 9)), reverse=True)[:3]
        assert [one["activation"] for one in contexts.to_pylist() if one["latent"] == latent] == strongest


class Given(torch.nn.Module):
    """A model whose hook `x` is some columns of its input."""

    def forward(self, inputs, tap):
        return tap("x", inputs[:, :3])


def test_contexts_in_a_table_show_the_row_and_its_target(make_table, tmp_path, sae):
    given = np.concatenate([values(40), np.random.default_rng(1).normal(size=(40, 1)).astype(np.float32)], 1)
    table = make_table(given, np.arange(40))
    store = harvested(tmp_path / "store", Given(), table, None)
    _, contexts = describe(sae, store, table, SPEC)
    assert len(contexts) == 6
    for one in contexts.to_pylist():
        assert one["activation"] == given[one["sequence"], one["latent"]]
        assert (one["position"], one["row"]) == (0, one["sequence"])
        assert one["target"] == one["sequence"]
        assert one["input"] == tables.read(table, "train")[0][one["sequence"]].tolist()


def test_the_size_of_batches_does_not_count(make_text, sae):
    store, text = make_text(values(70))
    found = [describe(sae, store, text, {**SPEC, "batch": size})[1] for size in (1, 20, 1000)]
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_a_flagged_row_is_nobodys_strongest_and_counts_in_no_statistic(make_text, sae):
    given = values(70)
    given[30] = 1000
    store, text = make_text(given)
    for size in (1, 20):
        latents, contexts = describe(sae, store, text, {**SPEC, "batch": size})
        assert latents["density"].to_pylist() == pytest.approx([(np.delete(given, 30, 0)[:, m] > 0).mean() for m in range(3)])
        assert max(latents["max"].to_pylist()) < 1000
        assert 1 not in contexts["latent"].to_pylist(), "it fires nowhere else"
        assert max(contexts["activation"].to_pylist()) < 1000


def test_a_store_of_another_text_is_refused(make_text, make_tokens, sae):
    """Its positions would be shown as words of the wrong text."""
    with pytest.raises(UserError, match="recorded over a dataset with hash"):
        describe(sae, make_text(values(70))[0], make_tokens(np.arange(72), 72, "other"), SPEC)


def test_a_store_all_of_whose_rows_are_flagged_is_told_of(make_text, sae):
    given = values(70)
    given[0] = 1000
    with pytest.raises(UserError, match="hook x: all 1 rows are flagged"):
        describe(sae, *make_text(given, rows=1, batch=4), SPEC)


class Two(torch.nn.Module):
    """A model of two hooks: some columns of its input, and others."""

    def forward(self, inputs, tap):
        tap("x", inputs[:, :3])
        return tap("y", inputs[:, 3:])


def test_of_a_transcoder_rows_that_are_flagged_at_its_output_count_in_nothing(make_table, tmp_path, sae):
    given = np.concatenate([values(40), np.ones((40, 2), np.float32)], 1)
    given[7, 3:] = 1000
    table = make_table(given)
    store = harvested(tmp_path / "store", Two(), table, None, hooks=["x", "y"])
    assert store["x"].kept_rows() == 40
    latents, contexts = describe(sae, store, table, {**SPEC, "output": "y", "contexts": 40})
    rest = np.delete(given, 7, 0)
    assert latents["density"].to_pylist() == pytest.approx([(rest[:, m] > 0).mean() for m in range(3)])
    assert 7 not in contexts["sequence"].to_pylist()
    assert 7 in describe(sae, store, table, {**SPEC, "contexts": 40})[1]["sequence"].to_pylist()
