"""What the model loses: identity loses nothing, ablation everything, and positions count alike."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.measured import Measured
from pipeline.evaluation.splice import losses
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.train import measure
from tests.stores import harvested

HOOK = "blocks.0.resid_post"


@pytest.fixture
def model():
    """A language model with weights large enough to have opinions."""
    found, _ = checkpoint.build({"architecture": "gpt", "layers": 2, "width": 8, "heads": 2, "context": 8}, {"vocabulary": 11})
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return found.eval()


IDS = np.random.default_rng(0).integers(0, 11, 36)
"""35 positions: four windows of 8 and one of 3."""


@pytest.fixture
def dataset(make_tokens):
    """Token 3 is a special one."""
    return make_tokens(IDS, 11, special=[3])


@pytest.fixture
def text(dataset):
    return examples(dataset, "train", 8)


@pytest.fixture
def measured(tmp_path, model, dataset):
    """The rows of a store: all of them where nothing else is asked for."""

    def measured(**settings) -> Measured:
        chosen = {"leave_out": "none", "sinks_above": None, "chunk_rows": 4, "shard_rows": 8, **settings}
        folder = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        return Measured(harvested(folder, model, dataset, 8, hooks=[HOOK], **chosen), HOOK)

    return measured


MEAN = torch.linspace(-1, 1, 8)


def test_identity_loses_nothing_to_the_last_bit(model, text, measured):
    found = losses(model, text, HOOK, lambda x: x.clone(), MEAN, 3, measured())
    assert found["loss_sae"] == found["loss_clean"] == measure(model, text, 3)["loss"]
    assert (found["loss_score_zero"], found["loss_score_mean"]) == (1, 1)
    assert found["positions"] == 35


def test_ablation_is_the_zero_of_its_own_score(model, text, measured):
    assert losses(model, text, HOOK, torch.zeros_like, MEAN, 3, measured())["loss_score_zero"] == 0
    assert losses(model, text, HOOK, lambda x: MEAN.expand_as(x), MEAN, 3, measured(**SOME))["loss_score_mean"] == 0


SOME = {"leave_out": "special", "sinks_above": 1.05}
"""Special tokens are no rows, and rows a little longer than the median are flagged."""


def by_hand(model, text, replace, replaced=lambda norm, token: True) -> float:
    """Mean over positions of -log p(next token), the rest of the forward written out from the hook on; where a row's norm and token
    say so, the row is replaced."""
    total = []
    with torch.no_grad():
        for start in range(0, 35, 8):
            window = torch.from_numpy(text.ids[start : start + 9].astype(np.int64))
            x = model.token.weight[window[:-1]] + model.position.weight[: len(window) - 1]
            x = model.blocks[0](x[None], lambda name, value: value, "a")[0]
            rows = [
                replace(row[None])[0] if replaced(row.norm().item(), token) else row for row, token in zip(x, window.tolist(), strict=False)
            ]
            x = model.blocks[1](torch.stack(rows)[None], lambda name, value: value, "b")
            logits = (model.norm(x) @ model.token.weight.T)[0].double()
            total += (-logits.log_softmax(-1)[torch.arange(len(window) - 1), window[1:]]).tolist()
    assert len(total) == 35
    return float(np.mean(total))


def noisy(x):
    return 0.5 * x + torch.sin(7 * x)


@pytest.mark.parametrize("settings", [{}, SOME, {**SOME, "leave_out": "none"}, {"leave_out": "special"}])
def test_every_loss_and_score_by_hand(model, text, measured, settings):
    """The hook is replaced at rows that are not flagged, and all positions are scored."""
    rows = measured(**settings)
    sinks = rows.columns[0].hook["sinks"]
    above = sinks["above"] if sinks else float("inf")
    seen = []

    def replaced(norm, token):
        seen.append(norm <= above and (token != 3 or settings.get("leave_out") != "special"))
        return seen[-1]

    ways = (noisy, torch.zeros_like, lambda x: MEAN.expand_as(x))
    clean, sae, zero, mean = by_hand(model, text, lambda x: x), *(by_hand(model, text, way, replaced) for way in ways)
    assert sum(seen) == 3 * rows.columns[0].kept_rows()
    assert rows.columns[0].kept_rows() < 35 or not settings
    found = losses(model, text, HOOK, noisy, MEAN, 3, rows)
    assert found["positions"] == 35
    assert found["loss_clean"] == pytest.approx(clean, rel=1e-5)
    assert found["loss_sae"] == pytest.approx(sae, rel=1e-5)
    assert found["loss_zero"] == pytest.approx(zero, rel=1e-5)
    assert found["loss_mean"] == pytest.approx(mean, rel=1e-5)
    assert len({round(value, 3) for value in (clean, sae, zero, mean)}) == 4
    assert found["loss_score_zero"] == pytest.approx((zero - sae) / (zero - clean), rel=1e-3)
    assert found["loss_score_mean"] == pytest.approx((mean - sae) / (mean - clean), rel=1e-3)


@pytest.mark.parametrize("settings", [{}, SOME, {**SOME, "rows": 13}])
def test_the_reconstruction_sees_the_rows_that_are_measured(model, text, measured, settings):
    """The rows that the other metrics are of, each once, in their order."""
    seen = []
    rows = measured(**settings)
    losses(model, text, HOOK, lambda x: seen.append(x) or x, MEAN, 3, rows)
    stored = np.concatenate(list(rows.columns[0].batches(5)))
    torch.testing.assert_close(torch.cat(seen), torch.from_numpy(stored), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [25, 30, 32])
def test_only_the_first_sequences_are_scored_where_the_store_holds_no_more(model, text, measured, rows):
    """Whatever the batches: 4 sequences are 4 sequences, in batches of 3 as in one of 4."""
    found = losses(model, text, HOOK, torch.zeros_like, MEAN, 3, measured(rows=rows))
    assert found["positions"] == 4 * text.length
    other = losses(model, text, HOOK, torch.zeros_like, MEAN, 4, measured(rows=rows))
    assert found["loss_clean"] == pytest.approx(other["loss_clean"], rel=1e-6)
    assert found["loss_sae"] == pytest.approx(other["loss_sae"], rel=1e-6)
    assert found["loss_clean"] != losses(model, text, HOOK, torch.zeros_like, MEAN, 3, measured())["loss_clean"]


def test_sequences_without_any_row_flow_on_as_they_are(model, make_tokens, tmp_path):
    """The second of three windows is special tokens throughout."""
    ids = np.where(np.arange(25) // 8 == 1, 3, IDS[:25] % 3)
    dataset = make_tokens(ids, 11, "gap", special=[3])
    store = harvested(tmp_path / "store", model, dataset, 8, hooks=[HOOK])
    calls = []
    losses(model, examples(dataset, "train", 8), HOOK, lambda x: calls.append(len(x)) or x, MEAN, 1, Measured(store, HOOK))
    assert calls == [8, 8]


def test_where_ablation_costs_nothing_there_is_no_score(model, text, measured):
    """A mean that is never reached: the hook's own value is put in its place."""
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.zero_()  # every logit is 0
    found = losses(model, text, HOOK, torch.zeros_like, MEAN, 3, measured())
    assert found["loss_clean"] == pytest.approx(np.log(11), rel=1e-5)
    assert (found["loss_score_zero"], found["loss_score_mean"]) == (None, None)


def test_tables_have_scores_too(make_table, tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 3))
    model, _ = checkpoint.build({"architecture": "mlp", "hidden": [6], "batch_norm": []}, {"width": 3})
    table = make_table(rows, rows[:, 0])
    split = examples(table, "train", None)
    store = harvested(tmp_path / "store", model.eval(), table, None, hooks=["layer1"], sinks_above=None)
    found = losses(model, split, "layer1", lambda x: 0.5 * x, torch.ones(6), 70, Measured(store, "layer1"))
    with torch.no_grad():
        hidden = (split.rows @ model.linear[0].weight.T + model.linear[0].bias).relu()
        expected = [
            ((h @ model.output.weight[0] + model.output.bias - split.target) ** 2).mean().item() for h in (0.5 * hidden, 0 * hidden)
        ]
    assert (found["loss_sae"], found["loss_zero"]) == pytest.approx(tuple(expected), rel=1e-5)
    assert found["positions"] == 300
