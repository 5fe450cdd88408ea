"""Dead latents: counted in rows, and brought back by resampling and by AuxK on data that kills them."""

import numpy as np
import pytest
import torch

from pipeline.artifacts.errors import UserError
from pipeline.saes import checkpoint, resampling, train
from pipeline.study.kinds import kinds
from pipeline.study.sae import SAETraining
from tests.saes.runs import RELU, TOPK, TRAINING, made, rows, run


@pytest.mark.parametrize(
    ("tokens", "share", "rows", "window"), [(10_000_000, 0.2, 1_000_000, 200_000), (50_000, 0.2, 1_000_000, 50_000), (10, 0.1, 3, 1)]
)
def test_the_window_is_the_smaller_of_a_number_of_tokens_and_a_share_of_the_run(tokens, share, rows, window):
    assert SAETraining(dead_tokens=tokens, dead_share=share).window(rows) == window


@pytest.mark.parametrize(
    ("resample", "tokens", "told"), [([0.1], 10_000, 0.1), ([0.6, 0.17], 10_000, 0.17), ([0.2, 0.9], 10_000, None), ([0.1], 240, None)]
)
def test_resampling_before_any_latent_can_be_dead_is_refused(store, resample, tokens, told):
    """Of 2,400 rows a fifth has to pass, or `dead_tokens`."""
    training = {**TRAINING, "resample": resample, "dead_tokens": tokens}
    if told is None:
        assert made(store, **TOPK, training=training)[0].resample_at
        return
    with pytest.raises(
        UserError, match=rf"training\.resample: at {told} of the run no latent is dead yet: that takes 480 of its 2,400 rows"
    ):
        made(store, **TOPK, training=training)


@pytest.mark.parametrize("share", [0.07, 0.11, 0.3, 0.57])
def test_resampling_where_the_window_ends_finds_who_is_dead(store, share):
    """Whatever rounding makes of the share of steps: of 77 here, in batches that are not equal."""
    found, _, batches = killed(store, **RELU, training={**KILLING, "batch": 28, "epochs": 7, "dead_share": share, "resample": [share]})
    trained(found, batches, 7)
    assert found.at.resampled == 20


def test_the_window_is_printed_and_in_the_facts(store, capsys):
    found = run(store, **TOPK, training={**TRAINING, "dead_share": 0.25})
    assert found.facts()["dead_window"] == 600
    assert "has not fired in 600 rows, 25% of the run" in capsys.readouterr().err


def test_rows_since_a_latent_fired_are_counted_and_the_sae_is_told_who_is_dead(store):
    """Against a count by hand, of what the SAE says fired."""
    found, _, batches = made(store, **TOPK, training={**TRAINING, "dead_share": 0.05})
    since, losses = np.zeros(24, dtype=int), found.sae.losses
    told, fired = [], []
    found.sae.losses = lambda x, y, at: (told.append(at.dead_M), fired.append(losses(x, y, at)))[1] or fired[-1]
    seen = 0
    for batch in batches.batches(epochs=2):
        found.step(batch["x"], batch["x"])
        expected = since >= found.window if seen >= found.window else None
        assert told[-1] is None if expected is None else np.array_equal(told[-1].numpy(), expected)
        since = np.where(fired[-1].fired_M.numpy() > 0, 0, since + len(batch))
        seen += len(batch)
        assert np.array_equal(found.since_M.numpy(), since)
        if found.at.curve and found.at.curve[-1]["step"] == found.at.step:
            assert found.at.curve[-1]["dead"] == (since >= min(seen, found.window)).mean()
    assert any(one is not None and one.any() for one in told)


def killed(store, **spec):
    """A run in which all latents but four are dead at the start: their directions point away from all rows."""
    found, source, batches = made(store, **spec)
    with torch.no_grad():
        for name in found.sae._BIASES:
            getattr(found.sae, name)[4:] = -100.0
    return found, source, batches


def trained(found, batches, epochs: int = 8):
    for batch in batches.batches(epochs=epochs):
        found.step(batch["x"], batch["x"])
    return found


KILLING = {**TRAINING, "dead_share": 0.1, "points": 8}


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_resampling_brings_dead_latents_back(store, architecture):
    fields = kinds("saes")[architecture].model_fields
    spec = {"architecture": architecture, **({"k": 3, "auxk": 0} if "k" in fields else {}), **({"l1": 0.003} if "l1" in fields else {})}
    found, _, batches = killed(store, **spec, training=KILLING)
    left = trained(found, batches).at.curve[-1]
    assert left["dead"] >= 20 / 24, "without it they stay dead"
    found, _, batches = killed(store, **spec, training={**KILLING, "resample": [0.25, 0.5]})
    back = trained(found, batches).at.curve[-1]
    assert back["dead"] < 0.5
    assert back["fve"] > left["fve"] + 0.05
    assert found.facts()["resampled"] >= 20


@pytest.mark.parametrize("architecture", [name for name, kind in kinds("saes").items() if "auxk" in kind.model_fields])
def test_auxk_brings_dead_latents_back(store, architecture):
    """Latents that are too weak to be among the largest, which nothing else would ever change; at its weight by default."""
    training = {**KILLING, "lr": 0.003, "dead_share": 0.05}
    spec, ends = {"architecture": architecture, "k": 3, "training": {**training, "epochs": 30}}, []
    for weight in ({"auxk": 0}, {}):
        found, _, batches = made(store, **spec, **weight)
        with torch.no_grad():
            found.sae.W_enc[:, 4:] *= 0.05
            found.sae.b_enc[:4] = 1.0
        ends.append(trained(found, batches, 30).at.curve[-1])
    without, with_it = ends
    assert without["dead"] > 0.7
    assert with_it["dead"] < 0.7 * without["dead"]
    assert with_it["fve"] > without["fve"] + 0.1


@pytest.fixture
def crowded(make_store):
    """Rows of width sixteen that are sparse sums of forty-eight directions."""
    generator = np.random.default_rng(0)
    directions, offset = generator.normal(size=(48, 16)), generator.normal(size=16)
    values = (generator.random((2000, 48)) * (generator.random((2000, 48)) < 0.05)) @ directions + offset
    return make_store(values, chunk_rows=100, shard_rows=500)


def ends(store, **spec) -> tuple[float, float]:
    """Share of latents that are dead at the end, and FVE."""
    torch.manual_seed(0)
    source = train.Source(store, "x", "x")
    training = {"epochs": 15, "batch": 100, "lr": 0.01, "dead_share": 0.05, **spec.pop("training", {})}
    sae, settings = checkpoint.build({"latents": 64, "hook": "x", "training": training, **spec}, 16)
    batches = train.loader(source, settings)
    found = train.begun(sae, settings, source, batches)
    train.train({"sae": found}, source, batches)
    return found.at.curve[-1]["dead"], found.at.curve[-1]["fve"]


@pytest.mark.parametrize(("architecture", "l1"), [("relu", 1.6), ("gated", 2.0)])
def test_resampling_brings_back_what_a_penalty_has_killed(crowded, architecture, l1):
    without, with_it = (ends(crowded, architecture=architecture, l1=l1, training=training) for training in ({}, {"resample": [0.5, 0.7]}))
    assert without[0] > 0.3
    assert with_it[0] < 0.5 * without[0]
    assert with_it[1] > without[1]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_auxk_brings_back_what_a_large_rate_has_killed(crowded, architecture):
    training = {"lr": 0.03, "epochs": 30}
    without, with_it = (ends(crowded, architecture=architecture, k=3, training=training, **weight) for weight in ({"auxk": 0}, {}))
    assert without[0] > 0.2
    assert with_it[0] < 0.85 * without[0]
    assert with_it[1] > without[1] - 0.01


def test_what_resampling_changes_and_what_it_leaves(store):
    found, _, batches = killed(store, **{**RELU, "decoder": "unit"}, training=KILLING)
    trained(found, batches, 1)
    sae, x = found.sae, torch.from_numpy(rows().astype(np.float32))
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    dead_M = torch.arange(24) >= 4
    changed = resampling.resample(sae, dead_M, x, x, seed=1)
    assert torch.equal(changed, torch.arange(4, 24))
    assert torch.equal(sae.b_dec, before["b_dec"]), "shared biases are left alone"
    assert torch.equal(sae.W_dec[:4], before["W_dec"][:4])
    assert torch.equal(sae.W_enc[:, :4], before["W_enc"][:, :4])
    assert torch.equal(sae.b_enc[:4], before["b_enc"][:4])
    torch.testing.assert_close(sae.encode(x.mean(0)[None])[0, 4:], torch.zeros(20), rtol=0, atol=1e-6, msg="none fires for the mean")
    directions = (x - x.mean(0)) / (x - x.mean(0)).norm(dim=1, keepdim=True)
    match, row = (sae.W_dec[4:] @ directions.T).max(1)
    torch.testing.assert_close(match, torch.ones(20))
    assert len(set(row.tolist())) == 20, "distinct inputs"
    length = 0.2 * before["W_enc"][:, :4].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc[:, 4:], length * sae.W_dec[4:].T)


@pytest.mark.parametrize("out", [None, 6], ids=["SAE", "transcoder"])
def test_rows_that_are_equal_give_one_latent_its_direction(build, out):
    """Ten rows, of which seven are two rows again."""
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    x[3:6], x[6:] = x[0], x[1]
    y = x if out is None else x.flip(1)
    sae, _ = build(width=6, **RELU, latents=9, **({} if out is None else {"out": out}))
    changed = resampling.resample(sae, torch.arange(9) >= 1, x, y, seed=0)
    assert len(changed) == 3
    assert len(sae.W_dec[changed].unique(dim=0)) == 3


def test_thresholds_of_new_latents_are_as_much_smaller_as_their_directions(build):
    """As many rows reach them as at the start."""
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    x -= x.mean(0)
    sae, _ = build(width=6, architecture="jumprelu", latents=40, threshold=1.0)
    sae.initialise(torch.zeros(6))
    share = (sae.encode(x) != 0).double().mean().item()
    resampling.resample(sae, torch.arange(40) >= 10, x, x, seed=0)
    torch.testing.assert_close(sae.threshold[10:], torch.full((30,), 0.2))
    assert (sae.encode(x)[:, 10:] != 0).double().mean().item() == pytest.approx(share, rel=0.1)
    shifted, _ = build(width=6, architecture="shifted-relu", latents=40, theta=1.0)
    shifted.initialise(torch.zeros(6))
    resampling.resample(shifted, torch.arange(40) >= 10, x, x, seed=0)
    torch.testing.assert_close(shifted.b_enc, torch.tensor([-1.0] * 10 + [-0.2] * 30))


def test_rows_are_drawn_by_the_square_of_their_loss(build):
    """Three rows whose losses are 1, 2 and 3: the chances are 1, 4 and 9 of 14."""
    sae, _ = build(width=6, **RELU, latents=3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc[0], sae.b_enc[:] = 1.0, -100.0
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0, 0, 0]).sqrt())[:3]
    drawn = np.zeros(3)
    for seed in range(2000):
        with torch.no_grad():
            sae.W_dec.zero_()
        resampling.resample(sae, torch.tensor([False, True, False]), x, x, seed)
        drawn[int(sae.W_dec[1].argmax())] += 1
    np.testing.assert_allclose(drawn / 2000, np.array([1, 4, 9]) / 14, atol=0.04)


def test_resampled_latents_begin_anew_in_the_optimizer_and_in_the_count(store):
    found, _, batches = killed(store, **RELU, training={**KILLING, "resample": [0.25]})
    for batch in batches.batches(epochs=2):
        found.step(batch["x"], batch["x"])
        if found.at.step == 20:
            break
    assert found.at.resampled == 20
    assert not found.since_M[4:].any()
    for name, axis in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
        moments = found.optimizer.state(found.sae.get_parameter(name))
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not moments[moment].index_select(axis, torch.arange(4, 24)).any()
            assert moments[moment].index_select(axis, torch.arange(4)).any()
    assert found.optimizer.state(found.sae.b_dec)["exp_avg"].all()


def test_rows_to_resample_from_are_read_once_for_all_runs(store, monkeypatch):
    calls, sample = [], train.sample
    monkeypatch.setattr(train, "sample", lambda *given: calls.append(given) or sample(*given))
    found, source, batches = killed(store, **RELU, b_dec="geometric-median", training={**KILLING, "resample": [0.25, 0.5]})
    trained(found, batches)
    sae, settings = checkpoint.build({**RELU, "hook": "x", "b_dec": "geometric-median"}, 8)
    train.begun(sae, settings, source, batches)
    assert [rows for _, _, rows, _ in calls] == [train.SAMPLE, train.SCALED_BY], "few of them for the encoder's scale"


def test_no_more_latents_are_resampled_than_there_are_rows_with_a_loss(build):
    sae, _ = build(width=6, **RELU, latents=20)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert len(resampling.resample(sae, torch.ones(20, dtype=torch.bool), x, x, 0)) == 5


def test_a_transcoder_is_given_directions_of_each_side(build):
    spec = {"architecture": "relu", "latents": 10, "hook": "in", "output": "out", "outputs": ["out"]}
    sae, _ = checkpoint.build(spec, 6, 4)
    sae.initialise(torch.zeros(4))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=generator) + 5, torch.randn(50, 4, generator=generator)
    changed = resampling.resample(sae, torch.arange(10) >= 7, x, y, 0)
    assert changed.tolist() == [7, 8, 9]
    for latent in changed.tolist():
        row = int((sae.W_dec[latent] @ torch.nn.functional.normalize(y - y.mean(0)).T).argmax())
        into = x[row] - x.mean(0)
        torch.testing.assert_close(sae.W_enc[:, latent], 0.2 * sae.W_enc[:, 0].norm() * into / into.norm())


@pytest.mark.parametrize("way", [{}, {"outputs": ["y"], "hook": "x", "output": "y"}], ids=["subtract_b_dec: false", "transcoder"])
@pytest.mark.parametrize("architecture", kinds("saes"))
def test_new_latents_fire_for_their_row_and_not_for_what_all_rows_share(architecture, way):
    """Of rows whose mean is twenty times their spread, where b_dec is not subtracted from them: a new latent fires for about half."""
    plain = {"normalise": {"centre": False, "scale": "norm"}, "subtract_b_dec": False, "latents": 60}
    sae, _ = checkpoint.build({"architecture": architecture, **plain, **way}, 6)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 6, generator=generator) + 20 * torch.nn.functional.normalize(torch.randn(6, generator=generator), dim=0)
    sae.initialise(x.mean(0))
    dead_M = torch.arange(60) >= 10
    before = {name: sae.get_parameter(name)[:10].clone() for name in sae._BIASES}
    resampling.resample(sae, dead_M, x, x, 0)
    assert all(torch.equal(sae.get_parameter(name)[:10], value) for name, value in before.items()), "others are left alone"
    pre_BM = sae.pre(sae.centred(x))[:, dead_M]
    bias = -0.2 * sae.W_enc[:, 0].norm() * sae.spec.theta if architecture == "shifted-relu" else 0.0
    torch.testing.assert_close(pre_BM, (x - x.mean(0)) @ sae.W_enc[:, dead_M] + bias, rtol=1e-3, atol=1e-4)
    assert ((pre_BM > 0).float().mean(0) - 0.5).abs().max() < 0.1
    if architecture == "gated":
        torch.testing.assert_close(sae.encode(x)[:, dead_M], pre_BM.relu(), rtol=1e-3, atol=1e-4)
