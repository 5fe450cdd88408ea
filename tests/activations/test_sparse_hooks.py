"""Wide hooks that are mostly zero, of models that have such: kept sparse they read as they do kept dense."""

import numpy as np
import pytest
import torch

from pipeline.activations.loader import ActivationLoader
from pipeline.models import checkpoint
from tests.stores import harvested

MODELS = {
    "bdh": ({"architecture": "bdh", "layers": 2, "width": 16, "heads": 2, "multiplier": 8, "context": 8}, "blocks.1.xy_sparse"),
    "top-k": (
        {
            "architecture": "gpt",
            "layers": 2,
            "width": 16,
            "heads": 2,
            "context": 8,
            "objectives": [{"objective": "topk-mlp", "ratio": 0.1}],
        },
        "blocks.1.mlp_hidden",
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_sparse_store_reads_as_a_dense_one_and_is_smaller(make_tokens, tmp_path, name, dtype):
    spec, hook = MODELS[name]
    dataset = make_tokens(np.random.default_rng(0).integers(0, 11, 1001), 11)
    model, _ = checkpoint.build(spec, {"vocabulary": 11})
    chosen = {"hooks": [hook, "blocks.1.resid_post"], "chunk_rows": 64, "shard_rows": 256, "dtype": dtype, "covariance": [hook]}
    dense = harvested(tmp_path / "dense", model.eval(), dataset, 8, **chosen)
    sparse = harvested(tmp_path / "sparse", model.eval(), dataset, 8, sparse=[hook], **chosen)
    given = dense[hook].read(0, 1000)
    share = (given != 0).mean()
    assert 0 < share < 0.6
    assert np.array_equal(sparse[hook].read(0, 1000), given)
    assert np.array_equal(sparse[hook].read(63, 700), given[63:700])
    np.testing.assert_allclose(sparse.mean(hook), dense.mean(hook), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(sparse.covariance(hook), dense.covariance(hook), rtol=1e-9, atol=1e-15)
    assert sparse.variance(hook) == pytest.approx(dense.variance(hook), rel=1e-9)
    assert sparse.attributes["hooks"][hook]["stored"] == (given != 0).sum()
    assert [sparse.attributes["hooks"][hook]["storage"], dense.attributes["hooks"][hook]["storage"]] == ["sparse", "dense"]
    assert torch.equal(
        torch.from_numpy(sparse["blocks.1.resid_post"].read(0, 1000)), torch.from_numpy(dense["blocks.1.resid_post"].read(0, 1000))
    )


def test_the_loader_gives_the_same_rows_of_either(make_tokens, tmp_path):
    spec, hook = MODELS["bdh"]
    dataset = make_tokens(np.random.default_rng(0).integers(0, 11, 1001), 11)
    model, _ = checkpoint.build(spec, {"vocabulary": 11})
    stores = [
        harvested(tmp_path / f"{len(kept)}", model.eval(), dataset, 8, hooks=[hook], sparse=kept, chunk_rows=64, shard_rows=256)
        for kept in ([], [hook])
    ]
    first, second = (list(ActivationLoader(store, [hook], batch=100, seed=0, memory_mb=64).epoch(1)) for store in stores)
    assert all(torch.equal(one[hook], other[hook]) and torch.equal(one.rows, other.rows) for one, other in zip(first, second, strict=True))
