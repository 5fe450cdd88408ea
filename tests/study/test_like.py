"""Entries that are like another one."""

import pytest

from pipeline.study.faults import StudyError
from pipeline.study.study import parse

BASE = {
    "architecture": "gpt", "dataset": "text", "layers": 2, "width": 16, "heads": 2,
    "training": {"steps": 10, "lr": 0.1}, "sweep": {"seed": [0, 1]},
}  # fmt: skip


def study(**models) -> dict:
    return {"name": "s", "datasets": {"text": {"kind": "text", "corpus": "tinyshakespeare"}}, "models": {"base": BASE, **models}}


def test_it_has_the_others_settings_but_for_its_own():
    found = parse(study(other={"like": "base", "width": 32, "training": {"steps": 20}})).models["other_seed=1"]
    assert (found.layers, found.width, found.training.steps, found.training.lr, found.seed) == (2, 32, 20, 0.1, 1)


def test_sweeps_add_up():
    found = parse(study(other={"like": "base", "sweep": {"width": [16, 32]}})).models
    assert set(found) == {"base_seed=0", "base_seed=1"} | {f"other_seed={s}_width={w}" for s in (0, 1) for w in (16, 32)}


def test_of_a_chain_each_adds_to_the_last():
    found = parse(study(a={"like": "base", "width": 32}, b={"like": "a", "heads": 4})).models["b_seed=0"]
    assert (found.width, found.heads, found.layers) == (32, 4, 2)


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ({"a": {"like": "bose"}}, "models.a.like: 'bose' is not another entry of models; did you mean 'base'? (base)"),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, "models.a.like: leads back to itself: a -> b -> a"),
        ({"a": {"like": 3}}, "models.a.like: '3' is not another entry of models; allowed: (base)"),
        ({"a": {"like": "base", "widht": 3}}, "models.a.widht: 'widht' is not a setting; did you mean 'width'?"),
    ],
)
def test_what_is_wrong_is_told(models, line):
    with pytest.raises(StudyError) as error:
        parse(study(**models))
    assert any(one.startswith(line) for one in str(error.value).splitlines()), str(error.value)


def test_an_entry_that_is_null_is_left_out():
    assert set(parse({**study(), "models": {"base": BASE, "other": None}}).models) == {"base_seed=0", "base_seed=1"}
