"""Sweeps: which variants an entry has, what they are called, and what in them differs."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.study.faults import StudyError
from pipeline.study.kinds import kinds
from pipeline.study.sweep import variants

TOPK = kinds("saes")["topk"]
MLP = kinds("models")["mlp"]


def expand(spec=TOPK, name="topk", **settings):
    """Variants of an entry that has nothing wrong."""
    faults = []
    needed = {"architecture": "topk", "activations": "acts"} if spec is TOPK else {"architecture": "mlp", "dataset": "rows"}
    found = variants(name, {**needed, **settings}, spec, ("saes", name), faults)
    assert faults == []
    return found


def test_without_a_sweep_the_entry_is_its_only_variant():
    assert {name: one.k for name, one in expand(k=7).items()} == {"topk": 7}


def test_every_swept_key_is_in_the_name_and_every_combination_is_a_variant():
    found = expand(sweep={"k": [16, 32], "seed": [0, 1, 2]})
    assert list(found) == [f"topk_k={k}_seed={seed}" for k, seed in product((16, 32), (0, 1, 2))]
    assert "topk_k=32_seed=1" in found
    assert {name: (one.k, one.seed) for name, one in found.items()} == {
        f"topk_k={k}_seed={s}": (k, s) for k, s in product((16, 32), (0, 1, 2))
    }


def test_dotted_keys_reach_into_settings_and_leave_the_rest_as_written():
    found = expand(
        training={"lr": 0.5, "epochs": 3, "schedule": {"shape": "cosine", "final": 0.2}}, sweep={"training.schedule.warmup": [1, 2]}
    )
    assert list(found) == ["topk_warmup=1", "topk_warmup=2"]
    for warmup, one in enumerate(found.values(), 1):
        assert (one.training.lr, one.training.epochs, one.training.schedule.final) == (0.5, 3, 0.2)
        assert (one.training.schedule.shape, one.training.schedule.warmup) == ("cosine", warmup)


def test_a_key_is_written_out_where_its_end_would_not_tell_it_apart():
    found = expand(sweep={"training.lr": [0.5], "training.schedule.warmup": [1], "training.schedule.rise": [0.2], "training.batch": [8]})
    assert list(found) == ["topk_lr=0.5_warmup=1_rise=0.2_batch=8"]
    found = expand(MLP, "x", sweep={"training.batch": [8], "training.schedule.final": [0.5], "seed": [1]})
    assert list(found) == ["x_batch=8_final=0.5_seed=1"]
    gpt = {"architecture": "gpt", "dataset": "d", "objectives": [{"objective": "l1"}, {"objective": "orthogonality"}]}
    found = expand(kinds("models")["gpt"], "x", **gpt, sweep={"objectives.0.weight": [0.5], "objectives.1.weight": [0.2], "seed": [1]})
    assert list(found) == ["x_objectives.0.weight=0.5_objectives.1.weight=0.2_seed=1"]


@pytest.mark.parametrize(
    ("spec", "key", "values", "ends"),
    [
        (TOPK, "training.lr", [0.001, "1e-3"], None),  # one value written twice
        (TOPK, "training.lr", ["3e-4", 1, 1e-9], ["0.0003", "1.0", "1e-09"]),
        (TOPK, "k", ["16", 32.0], ["16", "32"]),
        (TOPK, "latents", [None, 64], ["none", "64"]),
        (TOPK, "training.betas", [[0.9, 0.99], [0, 0.5]], ["0.9+0.99", "0.0+0.5"]),
        (MLP, "hidden", [[8, 16], [8, 16, 8]], ["8+16", "8+16+8"]),
        (MLP, "training.decay", ["all", "matrices"], ["all", "matrices"]),
    ],
)  # fmt: skip
def test_a_value_is_named_as_the_study_understands_it(spec, key, values, ends):
    if ends is None:
        with pytest.raises(AssertionError):
            expand(spec, sweep={key: values})
    else:
        assert list(expand(spec, "x", sweep={key: values})) == [f"x_{key.rpartition('.')[2]}={end}" for end in ends]


numbers = st.one_of(st.integers(1, 2**40), st.floats(1e-300, 1e300))


@given(st.lists(numbers, min_size=1, max_size=6, unique_by=float))
def test_any_numbers_make_folder_names_that_differ_and_stay_the_same_when_values_are_added(values):
    found = expand(sweep={"training.lr": values})
    assert len(found) == len(values)
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]+", name) for name in found)
    more = expand(sweep={"training.lr": [*values, 1.5e308]})
    assert {name: more[name] for name in found} == found  # so a new value runs alone


def test_the_sweep_itself_is_no_setting_of_a_variant():
    """Otherwise a new value would change, and so run, every variant."""
    one = expand(sweep={"k": [4, 8]})["topk_k=4"]
    assert one == expand(name="topk", k=4)["topk"]
    assert "sweep" not in one.settings()


def test_a_swept_model_makes_activations_and_saes_of_every_variant(text, read):
    study = read(text.replace("    seed: 3\n", "    sweep: {seed: [1, 2]}\n").replace("    k: 4", "    sweep: {k: [4, 8]}"))
    assert list(study.models) == ["mlp_seed=1", "mlp_seed=2"]
    assert {name: (harvest.entry, harvest.model) for name, harvest in study.activations.items()} == {
        "acts_seed=1": ("acts", "mlp_seed=1"),
        "acts_seed=2": ("acts", "mlp_seed=2"),
    }
    recorded = ("acts_seed=1", "acts_seed=2")
    assert set(study.saes) == {
        *product(recorded, ("layer1", "layer2"), ("relu",)),
        *product(recorded, ("layer2",), ("topk_k=4", "topk_k=8")),
    }
    assert study.families["topk_k=8"] == "topk"
    assert study.families["mlp_seed=2"] == "mlp"


def test_a_hook_has_to_be_there_in_every_variant_of_a_model(text, read):
    with pytest.raises(StudyError, match=r"activations\.acts\.hooks\[1\]: 'layer2' is not a hook of mlp"):
        read(text.replace("    hidden: [8, 16]\n", "    batch_norm: []\n    sweep: {hidden: [[8, 16], [8]]}\n"))
