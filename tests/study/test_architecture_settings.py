"""What a study may say of each SAE architecture."""

import pytest
from pydantic import ValidationError

from pipeline.study.kinds import kinds


def spec(architecture: str, **settings):
    return kinds("saes")[architecture](architecture=architecture, activations="a", **settings)


def test_which_architectures_there_are():
    assert set(kinds("saes")) == {"relu", "shifted-relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"}


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_each_is_fine_without_a_setting_and_as_a_transcoder(architecture):
    assert spec(architecture).problems(64) == []
    transcoder = spec(architecture, hooks=["x"], outputs=["y"], skip=True)
    assert not transcoder.subtract_b_dec
    assert transcoder.problems(64) == []


CENTRED = {"centre": True, "scale": "norm"}


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_transcoders_and_jumprelu_are_trained_in_centred_units_unless_said_otherwise(architecture):
    plain = CENTRED if architecture == "jumprelu" else {"centre": False, "scale": "none"}
    assert spec(architecture).normalise.model_dump() == plain
    both = {"hooks": ["x"], "outputs": ["y"]}
    assert spec(architecture, **both).normalise.model_dump() == CENTRED
    assert spec(architecture, **both, normalise={"scale": "norm"}).normalise.model_dump() == CENTRED
    other = {"centre": False, "scale": "norm"}
    assert spec(architecture, **both, normalise=other).normalise.model_dump() == other
    again = spec(architecture, **both, normalise=other).settings()
    assert kinds("saes")[architecture].model_validate({**again, "activations": "a", "hooks": ["x"]}).normalise.model_dump() == other


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_which_have_a_penalty_that_is_to_make_them_sparse(architecture):
    assert spec(architecture).penalised() == (architecture in ("relu", "jumprelu", "gated"))


@pytest.mark.parametrize(
    ("architecture", "settings", "penalised"),
    [
        ("relu", {"l1": 0}, False),
        ("shifted-relu", {"l1": 0.1}, True),
        ("gated", {"l1": 0}, False),
        ("jumprelu", {"l0": 0}, False),
        ("jumprelu", {"l0": 0, "target_l0": 8}, True),
    ],
)
def test_a_penalty_of_weight_zero_is_none(architecture, settings, penalised):
    assert spec(architecture, **settings).penalised() == penalised


@pytest.mark.parametrize(
    ("architecture", "settings", "told"),
    [
        ("jumprelu", {"normalise": {"scale": "none"}}, "normalise.scale: thresholds and their bandwidth are in normalised units"),
        ("jumprelu", {"bandwidth": 0}, "greater than 0"),
        ("gated", {"decoder": "free"}, "unit"),
        ("shifted-relu", {"theta": -1}, "greater than or equal to 0"),
    ],
)
def test_what_would_not_learn_is_refused(architecture, settings, told):
    with pytest.raises(ValidationError, match=told):
        spec(architecture, **settings)


@pytest.mark.parametrize(
    ("architecture", "settings", "told"),
    [
        ("jumprelu", {"target_l0": 513}, "target_l0: 513.0 is more than the 512 latents"),
        ("batchtopk", {"k": 513}, "k: 513 is more than the 512 latents"),
        ("matryoshka", {"k_start": 513}, "k_start: 513 is more than the 512 latents"),
        ("topk", {"k": 8, "k_start": 4}, "k_start: 4 is less than k, 8"),
        ("matryoshka", {"prefixes": [5, 100]}, "prefixes: the last is 100 of 512 latents"),
    ],
)
def test_what_does_not_fit_the_latents_is_told(architecture, settings, told):
    (problem,) = spec(architecture, **settings).problems(64)
    assert told in problem
