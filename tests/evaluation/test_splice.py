"""What the model loses: identity loses nothing, ablation everything, and positions count alike."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.splice import losses
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.train import measure

HOOK = "blocks.0.resid_post"


@pytest.fixture
def model():
    """A language model with weights large enough to have opinions."""
    found, _ = checkpoint.build({"architecture": "gpt", "layers": 2, "width": 8, "heads": 2, "context": 8}, {"vocabulary": 11})
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return found.eval()


@pytest.fixture
def text(make_tokens):
    """35 positions: four windows of 8 and one of 3."""
    return examples(make_tokens(np.random.default_rng(0).integers(0, 11, 36), 11), "train", 8)


MEAN = torch.linspace(-1, 1, 8)


def test_identity_loses_nothing_to_the_last_bit(model, text):
    found = losses(model, text, HOOK, lambda x: x.clone(), MEAN, 3, len(text))
    assert found["loss_sae"] == found["loss_clean"] == measure(model, text, 3)["loss"]
    assert (found["loss_score_zero"], found["loss_score_mean"]) == (1, 1)
    assert found["positions"] == 35


def test_ablation_is_the_zero_of_its_own_score(model, text):
    assert losses(model, text, HOOK, torch.zeros_like, MEAN, 3, len(text))["loss_score_zero"] == 0
    assert losses(model, text, HOOK, lambda x: MEAN.expand_as(x), MEAN, 3, len(text))["loss_score_mean"] == 0


def by_hand(model, text, replace) -> float:
    """Mean over positions of -log p(next token), the rest of the forward written out from the hook on."""
    total = []
    with torch.no_grad():
        for start in range(0, 35, 8):
            window = torch.from_numpy(text.ids[start : start + 9].astype(np.int64))
            x = model.token.weight[window[:-1]] + model.position.weight[: len(window) - 1]
            x = model.blocks[0](x[None], lambda name, value: value, "a")
            x = model.blocks[1](replace(x), lambda name, value: value, "b")
            logits = (model.norm(x) @ model.token.weight.T)[0].double()
            total += (-logits.log_softmax(-1)[torch.arange(len(window) - 1), window[1:]]).tolist()
    assert len(total) == 35
    return float(np.mean(total))


def test_every_loss_and_score_by_hand(model, text):
    def noisy(x):
        return 0.5 * x + torch.sin(7 * x)

    found = losses(model, text, HOOK, noisy, MEAN, 3, len(text))
    clean, sae, zero, mean = (by_hand(model, text, way) for way in (lambda x: x, noisy, torch.zeros_like, lambda x: MEAN.expand_as(x)))
    assert found["loss_clean"] == pytest.approx(clean, rel=1e-5)
    assert found["loss_sae"] == pytest.approx(sae, rel=1e-5)
    assert found["loss_zero"] == pytest.approx(zero, rel=1e-5)
    assert found["loss_mean"] == pytest.approx(mean, rel=1e-5)
    assert len({round(value, 3) for value in (clean, sae, zero, mean)}) == 4
    assert found["loss_score_zero"] == pytest.approx((zero - sae) / (zero - clean), rel=1e-3)
    assert found["loss_score_mean"] == pytest.approx((mean - sae) / (mean - clean), rel=1e-3)


def test_the_reconstruction_sees_what_the_store_holds(model, text):
    """The hook's own values, every position once."""
    seen = []
    losses(model, text, HOOK, lambda x: seen.append(x.reshape(-1, 8)) or x, MEAN, 3, len(text))
    stored = []
    with torch.no_grad():
        for batch in text.batches(3):
            model(batch.inputs, lambda name, value: stored.append(value.reshape(-1, 8)) or value if name == HOOK else value)
    torch.testing.assert_close(torch.cat(seen), torch.cat(stored), rtol=1e-4, atol=1e-5)


def test_only_the_first_sequences_are_scored_where_the_store_holds_no_more(model, text):
    """Whatever the batches: 4 sequences are 4 sequences, in batches of 3 as in one of 4."""
    found = losses(model, text, HOOK, torch.zeros_like, MEAN, 3, 4)
    assert found["positions"] == 4 * text.length
    assert found["loss_clean"] == pytest.approx(losses(model, text, HOOK, torch.zeros_like, MEAN, 4, 4)["loss_clean"], rel=1e-6)
    assert found["loss_clean"] != losses(model, text, HOOK, torch.zeros_like, MEAN, 3, len(text))["loss_clean"]


def test_where_ablation_costs_nothing_there_is_no_score(model, text):
    """A mean that is never reached: the hook's own value is put in its place."""
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.zero_()  # every logit is 0
    found = losses(model, text, HOOK, torch.zeros_like, MEAN, 3, len(text))
    assert found["loss_clean"] == pytest.approx(np.log(11), rel=1e-5)
    assert (found["loss_score_zero"], found["loss_score_mean"]) == (None, None)


def test_tables_have_scores_too(make_table):
    rows = np.random.default_rng(0).normal(size=(300, 3))
    model, _ = checkpoint.build({"architecture": "mlp", "hidden": [6], "batch_norm": []}, {"width": 3})
    split = examples(make_table(rows, rows[:, 0]), "train", None)
    found = losses(model.eval(), split, "layer1", lambda x: 0.5 * x, torch.ones(6), 70, len(split))
    with torch.no_grad():
        hidden = (split.rows @ model.linear[0].weight.T + model.linear[0].bias).relu()
        expected = [
            ((h @ model.output.weight[0] + model.output.bias - split.target) ** 2).mean().item() for h in (0.5 * hidden, 0 * hidden)
        ]
    assert (found["loss_sae"], found["loss_zero"]) == pytest.approx(tuple(expected), rel=1e-5)
    assert found["positions"] == 300
