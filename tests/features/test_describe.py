"""The two tables that describe an SAE's latents: what they say of a context is what stands there."""

import numpy as np
import pytest
import torch

from pipeline.datasets import tables
from pipeline.features.describe import describe
from pipeline.saes import checkpoint

SPEC = {"hook": "x", "batch": 16, "contexts": 3, "before": 2, "after": 1, "split": "train"}


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


def test_contexts_in_text_show_the_tokens_around_the_strongest(make_store, make_tokens, sae):
    """Token i of the stream is the number i, so that a window's tokens say where it is."""
    given = values(70)
    store = make_store(given, length=9, chunk_rows=64, shard_rows=64)
    text = make_tokens(np.arange(71), 71, "shown")
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


def test_contexts_in_a_table_show_the_row_and_its_target(make_store, make_table, sae):
    given = values(40)
    store = make_store(given, chunk_rows=64, shard_rows=64)
    inputs, target = np.random.default_rng(1).normal(size=(40, 4)), np.arange(40)
    table = make_table(inputs, target, name="shown")
    _, contexts = describe(sae, store, table, SPEC)
    assert len(contexts) == 6
    for one in contexts.to_pylist():
        assert one["activation"] == given[one["sequence"], one["latent"]]
        assert one["position"] == 0
        assert one["target"] == one["sequence"]
        assert one["input"] == tables.read(table, "train")[0][one["sequence"]].tolist()


def test_the_size_of_batches_does_not_count(make_store, make_tokens, sae):
    store = make_store(values(70), length=9, chunk_rows=64, shard_rows=64)
    text = make_tokens(np.arange(71), 71, "shown")
    found = [describe(sae, store, text, {**SPEC, "batch": size})[1] for size in (1, 20, 1000)]
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
