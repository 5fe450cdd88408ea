"""Transcoders: the input hook is read and the output hook replaced in one forward, and measured are rows that are flagged at neither."""

import json

import numpy as np
import pytest
import torch

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST
from pipeline.artifacts.publishing import publishing
from pipeline.evaluation.measured import Measured, batches
from pipeline.evaluation.splice import losses
from pipeline.models import checkpoint as models
from pipeline.models.examples import examples
from pipeline.models.hooks import record
from pipeline.saes import checkpoint
from pipeline.steps.evaluate import main
from tests.stores import harvested

GPT = {"architecture": "gpt", "layers": 2, "width": 6, "heads": 2, "context": 8, "seed": 0, "threads": 1}
MID, HIDDEN, OUT = "blocks.0.resid_mid", "blocks.0.mlp_hidden", "blocks.0.mlp_out"
SINKS = {"sinks_above": 1.2, "chunk_rows": 4, "shard_rows": 8}
"""Rows a little longer than the median are flagged: others at each hook."""


@pytest.fixture
def text(make_tokens):
    """59 positions in windows of 8; token 3 is special."""
    return make_tokens(np.random.default_rng(0).integers(0, 11, 60), 11, special=[3])


@pytest.fixture
def gpt():
    """A language model with weights large enough to have opinions."""
    model, _ = models.build(GPT, {"vocabulary": 11})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return model.eval()


def published(folder, model, spec, facts):
    with publishing(folder, "model", spec, {}) as draft:
        models.save(draft, model, spec, facts)
    return folder / MANIFEST


def transcoder(folder, hook, output, width, out, **weights):
    """The manifest of a ReLU transcoder, a skip-transcoder where W_skip is among its weights."""
    spec = {"architecture": "relu", "latents": len(weights["W_dec"]), "outputs": [output], "skip": "W_skip" in weights}
    spec |= {"hook": hook, "output": output, "metadata": {}}
    sae, _ = checkpoint.build(spec, width, out)
    with torch.no_grad():
        for name, value in weights.items():
            getattr(sae, name).copy_(value)
    with publishing(folder, "sae", spec, {}) as draft:
        checkpoint.save(draft, sae, spec, torch.zeros(spec["latents"]), torch.randn(16, width))
    return folder / MANIFEST


def evaluated(folder, sae, store, model, dataset, hook, output) -> dict:
    spec = {"hook": hook, "output": output, "batch": 10, "split": "train", "active_above": 0.0, "threads": 1}
    main(spec, sae, store.artifact.folder / MANIFEST, model, dataset.folder / MANIFEST, folder)
    return json.loads((folder / "metrics.json").read_text())


def test_the_exact_layer_of_an_mlp_loses_nothing(make_table, tmp_path):
    """layer2 = relu(W layer1 + b) is a ReLU transcoder with the identity as its decoder."""
    spec, facts = {"architecture": "mlp", "hidden": [6, 5], "batch_norm": []}, {"width": 3}
    model, _ = models.build(spec, facts)
    rows = np.random.default_rng(0).normal(size=(80, 3))
    table = make_table(rows, rows[:, 0])
    store = harvested(tmp_path / "store", model.eval(), table, None, hooks=["layer1", "layer2"], sinks_above=None)
    linear = model.linear[1]
    sae = transcoder(tmp_path / "sae", "layer1", "layer2", 6, 5, W_enc=linear.weight.T, b_enc=linear.bias, W_dec=torch.eye(5))
    found = evaluated(tmp_path / "out", sae, store, published(tmp_path / "model", model, spec, facts), table, "layer1", "layer2")
    assert found["fve"] == pytest.approx(1, abs=1e-9)
    assert found["loss_sae"] == pytest.approx(found["loss_clean"], rel=1e-6)
    assert (found["loss_score_zero"], found["loss_score_mean"]) == pytest.approx((1, 1), abs=1e-4)
    assert abs(found["loss_zero"] - found["loss_clean"]) > 1e-4
    layer2 = store["layer2"].read(0, 80)
    assert found["l0"] == pytest.approx((layer2 != 0).sum(1).mean())
    assert (found["hook"], found["output"], found["rows"]) == ("layer1", "layer2", 80)


@pytest.mark.parametrize("skip", [False, True])
def test_the_exact_map_of_a_language_models_mlp_loses_nothing(gpt, text, tmp_path, skip):
    """mlp_out = W mlp_hidden, of another width: latents are both signs of what goes in; or the skip alone does it, and no latent fires."""
    W, eye = gpt.blocks[0].mlp_out.weight, torch.eye(24)
    plain = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([W.T, -W.T])}
    weights = {"W_dec": torch.zeros(2, 6), "b_enc": torch.full((2,), -1.0), "W_skip": W} if skip else plain
    store = harvested(tmp_path / "store", gpt, text, 8, hooks=[HIDDEN, OUT], **SINKS)
    sae = transcoder(tmp_path / "sae", HIDDEN, OUT, 24, 6, **weights)
    found = evaluated(tmp_path / "out", sae, store, published(tmp_path / "model", gpt, GPT, {"vocabulary": 11}), text, HIDDEN, OUT)
    assert found["fve"] == pytest.approx(1, abs=1e-9)
    assert (found["loss_score_zero"], found["loss_score_mean"]) == pytest.approx((1, 1), abs=1e-4)
    assert (found["l0"], found["dead"]) == (pytest.approx(0 if skip else 24), 1 if skip else 0)


def test_rows_that_are_flagged_at_either_hook_are_not_measured(gpt, text, tmp_path):
    store = harvested(tmp_path / "store", gpt, text, 8, hooks=[MID, OUT], **SINKS)
    flags = [store[hook].kept(0, len(store)) for hook in (MID, OUT)]
    both = flags[0] & flags[1]
    assert len({int(one.sum()) for one in (*flags, both)}) == 3, "each hook has flags of its own"
    at = np.zeros(59, dtype=bool)
    at[(8 * store["sequence"].read(0, len(store)) + store["position"].read(0, len(store)))[both]] = True
    measured = Measured(store, MID, OUT)
    found = [measured.at(range(n, n + 1), min(8, 59 - 8 * n))[0] for n in range(8)]
    assert np.array_equal(torch.cat(found), at)
    for size in (1, 3, 100):
        x, y = (torch.cat(parts) for parts in zip(*batches([store[MID], store[OUT]], size), strict=True))
        assert np.array_equal(x, store[MID].read(0, len(store))[both])
        assert np.array_equal(y, store[OUT].read(0, len(store))[both])


def test_metrics_are_of_the_output_at_those_rows(gpt, text, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 9), "b_enc": (9,), "W_dec": (9, 6), "b_dec": (6,), "W_skip": (6, 6)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    store = harvested(tmp_path / "store", gpt, text, 8, hooks=[MID, OUT], **SINKS)
    sae = transcoder(tmp_path / "sae", MID, OUT, 6, 6, **weights)
    found = evaluated(tmp_path / "out", sae, store, published(tmp_path / "model", gpt, GPT, {"vocabulary": 11}), text, MID, OUT)
    both = store[MID].kept(0, len(store)) & store[OUT].kept(0, len(store))
    x, y = (store[hook].read(0, len(store))[both].astype(np.float64) for hook in (MID, OUT))
    W = {name: value.double().numpy() for name, value in weights.items()}
    f = np.maximum(x @ W["W_enc"] + W["b_enc"], 0)
    error = ((f @ W["W_dec"] + W["b_dec"] + x @ W["W_skip"].T - y) ** 2).sum()
    assert found["rows"] == both.sum() == len(store) - found["flagged"]
    assert found["fve"] == pytest.approx(1 - error / ((y - y.mean(0)) ** 2).sum(), rel=1e-4)
    assert found["mse"] == pytest.approx(error / len(x), rel=1e-4)
    assert found["l0"] == pytest.approx((f != 0).sum(1).mean())


def by_hand(model, ids, replace, at) -> float:
    """Mean loss where the MLP of block 0 gives `replace(stream, what it gave)` at some positions; the rest is written out."""
    total = []
    with torch.no_grad():
        for start in range(0, 59, 8):
            window = torch.from_numpy(ids[start : start + 9].astype(np.int64))
            seen = record(model, window[None, :-1], [MID, OUT])
            mid, out = seen[MID][0], seen[OUT][0].clone()
            some = torch.from_numpy(at[start : start + len(out)])
            out[some] = replace(mid, out)[some]
            x = model.blocks[1]((mid + out)[None], lambda name, value: value, "b")
            logits = (model.norm(x) @ model.token.weight.T)[0].double()
            total += (-logits.log_softmax(-1)[torch.arange(len(out)), window[1:]]).tolist()
    assert len(total) == 59
    return float(np.mean(total))


def test_losses_by_hand(gpt, text, tmp_path):
    store = harvested(tmp_path / "store", gpt, text, 8, hooks=[MID, OUT], **SINKS)
    both = store[MID].kept(0, len(store)) & store[OUT].kept(0, len(store))
    at = np.zeros(59, dtype=bool)
    at[(8 * store["sequence"].read(0, len(store)) + store["position"].read(0, len(store)))[both]] = True
    split, mean = examples(text, "train", 8), torch.linspace(-1, 1, 6)
    found = losses(gpt, split, MID, lambda x: torch.sin(7 * x), mean, 3, Measured(store, MID, OUT), OUT)
    ways = {
        "clean": lambda x, y: y,
        "sae": lambda x, y: torch.sin(7 * x),
        "zero": lambda x, y: torch.zeros_like(y),
        "mean": lambda x, y: mean.expand_as(y),
    }
    expected = {way: by_hand(gpt, split.ids, replace, at) for way, replace in ways.items()}
    assert {way: found[f"loss_{way}"] for way in ways} == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 3) for value in expected.values()}) == 4
    assert found["loss_score_zero"] == pytest.approx(
        (expected["zero"] - expected["sae"]) / (expected["zero"] - expected["clean"]), rel=1e-3
    )


def test_an_output_that_comes_before_the_input_is_told_of(gpt, text, tmp_path):
    store = harvested(tmp_path / "store", gpt, text, 8, hooks=[MID, OUT], sinks_above=None)
    with pytest.raises(UserError, match=rf"comes to {MID} before {OUT}"):
        losses(gpt, examples(text, "train", 8), OUT, lambda x: x, torch.zeros(6), 3, Measured(store, OUT, MID), MID)
