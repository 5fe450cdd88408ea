"""From files to a study, and from a study to the paths and settings that rules hand to steps."""

import copy
import json
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from snakemake.utils import update_config

from pipeline.study.faults import StudyError
from pipeline.study.graph import Graph, canonical
from pipeline.study.open import read_study
from pipeline.study.read import overlay


def at(**wildcards):
    """Wildcards as a rule hands them over."""
    return SimpleNamespace(**wildcards)


RELU = at(activations="acts", hook="layer1", sae="relu")
TOPK = at(activations="acts", hook="layer2", sae="topk")


def test_the_default_study_is_the_published_one(project):
    study = read_study([project / "config.yaml"])
    assert list(study.datasets) == ["pointer"]
    assert {sae.architecture for sae in study.saes.values()} >= {"relu", "topk"}
    assert {study.width(activations, hook) for activations, hook, _ in study.saes} == {512}
    assert {sae.latents for sae in study.saes.values()} == {2048}
    assert [sample.expected for sample in study.file.probe.samples] == [8, 6, 4, 1, 1]
    for sample in study.file.probe.samples:
        row = [int(x) for x in sample.input]
        assert sample.expected == abs(row[row[4]] - row[5 + row[9]])


keys = st.sampled_from("abcd")
trees = st.recursive(
    st.one_of(st.integers(), st.none(), st.lists(st.integers())), lambda inner: st.dictionaries(keys, inner), max_leaves=12
)
mappings = st.dictionaries(keys, trees)


def clash(below, above):
    """Whether a mapping would be laid over something else, where Snakemake fails or keeps what was there."""
    return any(
        isinstance(value, dict) and (not isinstance(below[key], dict) or clash(below[key], value))
        for key, value in above.items()
        if key in below
    )


@given(mappings, mappings)
def test_overlays_merge_as_snakemake_merges_them(below, above):
    assume(not clash(below, above))
    expected = copy.deepcopy(below)
    update_config(expected, copy.deepcopy(above))
    before = copy.deepcopy((below, above))
    assert overlay(below, above) == expected
    assert (below, above) == before


def test_later_files_change_what_they_name_and_nothing_else(text, read):
    plain, changed = read(text), read(text, "models: {mlp: {training: {lr: 0.5}}}\n", "name: other\n")
    assert changed.file.name == "other"
    assert changed.models["mlp"].training.lr == 0.5
    assert changed.models["mlp"].training.epochs == 2
    assert changed.saes == plain.saes


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical({"b": 1, "a": [1.0, None, "ü"]}) == canonical({"a": [1.0, None, "ü"], "b": 1}) == '{"a":[1.0,null,"ü"],"b":1}'


CASES = {
    "dataset": at(dataset="rows"),
    "model": at(model="mlp"),
    "activations": at(activations="acts", split="train"),
    "sae": TOPK,
    "evaluation": TOPK,
    "features": TOPK,
}

# One line of the study, and whose settings it is.
CHANGES = {
    "train: 100": ("train: 101", {"dataset"}),
    "lr: 0.01": ("lr: 0.02", {"model"}),
    "seed: 3": ("seed: 4", {"model"}),
    "    model: mlp": ("    model: mlp\n    batch: 7", {"activations"}),
    "    k: 4": ("    k: 5", {"sae"}),
    "    l1: 0.5": ("    l1: 0.6", set()),  # another SAE
    "name: small": ("name: large", set()),
    "saes:\n": ("evaluation: {active_above: 0.5}\nfeatures: {contexts: 3}\nreport: {title: x}\nsaes:\n", {"evaluation", "features"}),
    "hooks: [layer1, layer2]": ("hooks: [layer1, layer2]\n    splits: [train, validation, test]", set()),  # recorded besides
}


def test_a_line_of_the_study_reaches_the_steps_that_read_it_and_no_other(text, read):
    graph = Graph(read(text))
    before = {stage: graph.spec(stage, wildcards) for stage, wildcards in CASES.items()}
    for old, (new, expected) in CHANGES.items():
        assert text.count(old) == 1
        changed = Graph(read(text.replace(old, new)))
        assert {stage for stage, wildcards in CASES.items() if changed.spec(stage, wildcards) != before[stage]} == expected, old


def test_settings_that_are_written_out_are_those_that_are_left_out(text, read):
    """A default that is spelled runs nothing again."""
    spelled = text.replace("    k: 4", "    k: 4.0\n    seed: 0\n    training: {batch: '1024', dead_share: 2e-1}").replace(
        "    seed: 3", "    seed: '3'"
    )
    assert Graph(read(text)).spec("sae", TOPK) == Graph(read(spelled)).spec("sae", TOPK)
    assert Graph(read(text)).spec("model", at(model="mlp")) == Graph(read(spelled)).spec("model", at(model="mlp"))


def test_paths_lie_under_the_study_and_name_every_artifact_once(text, read):
    graph = Graph(read(text.replace("    k: 4", "    sweep: {k: [4, 8]}")))
    folders = [folder for stage in graph.everything().values() for folder in stage]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("results/small/") for folder in folders)
    assert graph.all_of("sae") == [
        f"results/small/saes/acts/{hook}/{sae}/manifest.json"
        for hook, sae in (("layer1", "relu"), ("layer2", "relu"), ("layer2", "topk_k=4"), ("layer2", "topk_k=8"))
    ]
    assert graph.model_manifest(RELU) == "results/small/models/mlp/manifest.json"
    assert graph.dataset_manifest(RELU) == "results/small/datasets/rows/manifest.json"


def test_a_step_reads_back_the_spec_that_the_study_holds(text, read):
    study = read(text)
    graph = Graph(study)
    model = json.loads(graph.spec("model", at(model="mlp")))
    assert type(study.models["mlp"]).model_validate({**model, "dataset": "rows"}) == study.models["mlp"]
    dataset = json.loads(graph.spec("dataset", at(dataset="rows")))
    assert type(study.datasets["rows"]).model_validate(dataset) == study.datasets["rows"]
    for (activations, hook, name), sae in study.saes.items():
        spec = json.loads(graph.spec("sae", at(activations=activations, hook=hook, sae=name)))
        assert spec.pop("hook") == hook
        spec.pop("metadata")
        assert type(sae).model_validate({**spec, "activations": "acts", "hooks": sae.hooks}) == sae


def test_a_step_carries_the_code_of_its_kind_and_not_of_others(text, read):
    graph = Graph(read(text))
    assert "pipeline.saes.topk@" in graph.code_of("sae", TOPK)
    assert "relu" not in graph.code_of("sae", TOPK)
    assert "pipeline.models.mlp@" in graph.code_of("model", RELU)
    assert "gpt" not in graph.code_of("model", at(model="mlp"))
    assert "pipeline.datasets.pointer@" in graph.code_of("dataset", at(dataset="rows"))
    assert "table@" not in graph.code_of("dataset", at(dataset="rows")).replace("tables@", "")


def test_specs_cannot_be_changed_by_accident(text, read):
    sae = read(text).saes["acts", "layer2", "topk"]
    try:
        sae.k = 5
    except ValueError:
        return
    raise AssertionError("a spec was changed")


def test_yaml_numbers_in_every_spelling_are_numbers(text, read):
    for spelling in ("1e-3", "1.0e-3", "0.001", "'0.001'", "1E-3"):
        assert read(text.replace("lr: 0.01", f"lr: {spelling}")).models["mlp"].training.lr == 0.001
    assert yaml.safe_load("1e-3") == "1e-3", "YAML 1.1 reads it as text, which is why it is tested"


SWEPT = """
name: swept
datasets: {rows: {kind: pointer, sweep: {seed: [0, 1]}}}
models: {mlp: {architecture: mlp, dataset: rows, sweep: {training.lr: [0.1, 0.2]}}}
activations: {acts: {model: mlp, hooks: [layer1]}}
saes: {topk: {architecture: topk, activations: acts}}
"""


def test_what_a_swept_dataset_makes_carries_its_suffix(read):
    graph = Graph(read(SWEPT))
    assert list(graph.study.datasets) == ["rows_seed=0", "rows_seed=1"]
    assert list(graph.study.models) == [f"mlp_lr={lr}_seed={seed}" for lr in (0.1, 0.2) for seed in (0, 1)]
    assert graph.dataset_of(at(model="mlp_lr=0.2_seed=1")) == "rows_seed=1"
    assert graph.dataset_of(at(activations="acts_lr=0.1_seed=0")) == "rows_seed=0"
    assert json.loads(graph.spec("dataset", at(dataset="rows_seed=1")))["seed"] == 1
    assert len(graph.study.saes) == 4


def test_a_dataset_and_its_model_cannot_sweep_the_same_key(read):
    with pytest.raises(StudyError) as caught:
        read(SWEPT.replace("training.lr: [0.1, 0.2]", "seed: [5]"))
    assert "models.mlp.sweep.seed: 'seed' is swept here and in datasets.rows" in str(caught.value)
