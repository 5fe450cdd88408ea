"""Training-time objectives in a study: what is wrong with them, sweeps over them, the code of their steps, the schema."""

import subprocess
import sys
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from pipeline.study.faults import StudyError
from pipeline.study.graph import Graph
from pipeline.study.kinds import kinds
from pipeline.study.objective import names
from pipeline.study.schema import schema

STUDY = """\
name: small
datasets:
  text:
    kind: text
    corpus: tinyshakespeare
models:
  gpt:
    architecture: gpt
    dataset: text
    layers: 2
    width: 32
    objectives:
      - objective: orthogonality
        weight: 0.5
        layers: [1]
      - objective: topk-mlp
        ratio: 0.1
"""

# What stands in the study, what stands there instead, where the fault is, what its line has to say, and lines further down.
FAULTS = {
    "unknown objective": ("objective: orthogonality", "objective: ortogonality", "[0].objective",
                          ["'ortogonality' is not an objective", "did you mean 'orthogonality'", "topk-mlp"]),
    "no text": ("objective: orthogonality", "objective: [l1]", "[0].objective", ["is not an objective", "l1"]),
    "module for a name": ("objective: topk-mlp", "objective: topk_mlp", "[1].objective", ["did you mean 'topk-mlp'"]),
    "unknown setting": ("        weight: 0.5", "        wieght: 0.5", "[0].wieght",
                        ["'wieght' is not a setting", "did you mean 'weight'", "tokens"]),
    "setting of another objective": ("weight: 0.5", "sparsity: 0.5", "[0].sparsity", ["is not a setting", "weight, tokens"]),
    "weight of what has no term": ("ratio: 0.1", "weight: 0.1", "[1].weight", ["'weight' is not a setting", "(objective, layers, ratio)"]),
    "tokens of what reads none": ("objective: topk-mlp\n        ratio: 0.1", "objective: l0-gates\n        tokens: 9", "[1].tokens",
                                  ["'tokens' is not a setting", "temperature_start"], 1),
    "value": ("weight: 0.5", "weight: -1", "[0].weight", ["-1", "at least 0"]),
    "truth value": ("weight: 0.5", "weight: yes", "[0].weight", ["not a truth value"]),
    "share above one": ("ratio: 0.1", "ratio: 1.5", "[1].ratio", ["1.5", "at most 1"]),
    "choice": ("objective: topk-mlp\n        ratio: 0.1", "objective: online-sae\n        hook: mlp_hiden", "[1].hook",
               ["did you mean 'mlp_hidden'"], 1),
    "block that is not there": ("layers: [1]", "layers: [1, 2]", "[0].layers", ["no block 2", "has 2"]),
    "block twice": ("layers: [1]", "layers: [1, 1]", "[0].layers", ["'1' stands twice"]),
    "no block": ("layers: [1]", "layers: []", "[0].layers", ["at least 1"]),
    "block that is no number": ("layers: [1]", "layers: [x]", "[0].layers[0]", ["a number is expected"]),
    "less than half a unit": ("ratio: 0.1", "ratio: 0.001", "[1].ratio", ["0.001 of 128 units", "less than half a unit"]),
    "codes that cannot be the identity": ("objective: topk-mlp\n        ratio: 0.1", "objective: direct-sparsity\n        latents: 40",
                                                "[1].latents", ["40", "at least 64"], 1),
    "one of a kind": ("objective: topk-mlp\n        ratio: 0.1", "objective: orthogonality\n        layers: [0, 1]", "[1].layers",
                      ["another orthogonality", "block 1"], 1),
    "no mapping": ("      - objective: topk-mlp\n        ratio: 0.1", "      - topk-mlp", "[1]", ["a mapping is expected", "'topk-mlp'"]),
    "no name": ("      - objective: topk-mlp\n        ratio: 0.1", "      - ratio: 0.1", "[1].objective", ["is missing", "topk-mlp"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
def test_one_mistake_gives_one_line_at_its_place(case, read, tmp_path):
    old, new, path, words, offset = (*case, 0)[:5]
    before, found, after = STUDY.partition(old)
    assert found
    with pytest.raises(StudyError) as caught:
        read(before + new + after)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path / 'study0.yaml'}:{before.count(chr(10)) + 1 + offset}: models.gpt.objectives{path}: ")
    for word in words:
        assert word in line


def test_every_mistake_is_told_at_once(read):
    with pytest.raises(StudyError) as caught:
        read(STUDY.replace("weight: 0.5", "weight: x").replace("layers: [1]", "layers: 1").replace("ratio", "rate"))
    told = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert told == [f"models.gpt.objectives{where}" for where in ("[0].layers", "[0].weight", "[1].rate")]


def test_a_fault_of_a_swept_value_is_told_there(read):
    sweep = "    sweep:\n      objectives.0.weight: [0.1, -1]\n      objectives.1.ratio: [0.1]\n"
    with pytest.raises(StudyError, match=r"study0\.yaml:19: models\.gpt\.sweep\.objectives\.0\.weight\[1\]: -1: has to be at least 0$"):
        read(STUDY + sweep)


@pytest.mark.parametrize(
    "key", ["objectives.2.weight", "objectives.x.weight", "objectives.-1.ratio", "objectives.00.weight", "objectives.0"]
)
def test_what_is_not_in_the_list_cannot_be_swept(read, key):
    with pytest.raises(StudyError) as caught:
        read(STUDY + f"    sweep: {{{key}: [0.5]}}\n")
    assert f"models.gpt.sweep.{key}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_reaches_into_the_list_and_leaves_the_rest(read):
    study = read(STUDY + "    sweep: {objectives.0.weight: [0.001, 1e-2], seed: [1, 2]}\n")
    assert list(study.models) == [f"gpt_weight={weight}_seed={seed}" for weight in (0.001, 0.01) for seed in (1, 2)]
    one = study.models["gpt_weight=0.001_seed=2"].settings()["objectives"]
    assert one == [
        {"objective": "orthogonality", "layers": [1], "weight": 0.001, "tokens": 4096},
        {"objective": "topk-mlp", "layers": None, "ratio": 0.1},
    ]


def test_even_the_kind_can_be_swept(read):
    study = read(STUDY + "    sweep: {objectives.0.objective: [orthogonality, anti-polysemantic]}\n")
    assert [model.kinds_of_objective() for model in study.models.values()] == [
        ["orthogonality", "topk-mlp"],
        ["anti-polysemantic", "topk-mlp"],
    ]


def test_configurations_that_share_yaml_anchors(read):
    plain, objectives = STUDY.split("    objectives:\n")
    study = read(
        plain.replace("  gpt:\n", "  gpt: &gpt\n")
        + "  other:\n    <<: *gpt\n    objectives:\n"
        + objectives
        + "    sweep: {seed: [1, 2]}\n"
    )
    assert {name: len(model.objectives) for name, model in study.models.items()} == {"gpt": 0, "other_seed=1": 2, "other_seed=2": 2}


def test_a_model_carries_the_code_of_its_objectives_and_no_others(read):
    study = read(STUDY + "  plain:\n    architecture: gpt\n    dataset: text\n")
    graph = Graph(study)
    code = graph.code_of("model", SimpleNamespace(model="gpt"))
    for module in ("objectives.topk_mlp", "objectives.orthogonality", "objectives.base", "study.objectives.orthogonality", "models.gpt"):
        assert f"pipeline.{module}@" in code
    assert "l1@" not in code
    assert "pipeline.objectives" not in graph.code_of("model", SimpleNamespace(model="plain"))


def test_the_schema_offers_the_settings_of_each(read):
    found = schema()
    validator = jsonschema.Draft202012Validator(found)
    study = yaml.safe_load(STUDY)
    validator.validate(study)
    for kind, spec in kinds("objectives").items():
        settings = {name: value for name, value in spec(objective=kind).model_dump(mode="json").items() if value is not None}
        study["models"]["gpt"]["objectives"] = [settings]
        validator.validate(study)
        study["models"]["gpt"]["objectives"] = [{**settings, "wieght": 1}]
        assert not validator.is_valid(study)
    study["models"]["gpt"]["objectives"] = [{"objective": "topk-mlp", "weight": 1}]
    assert not validator.is_valid(study)
    help_text = found["$defs"]["GPT"]["properties"]["objectives"]["description"]
    assert help_text == "Training-time objectives, any number together."
    assert "nearest number of units" in found["$defs"]["TopKMLP"]["properties"]["ratio"]["description"]


def test_every_objective_has_a_module_with_its_spec_and_one_that_does_it(project):
    for name in names():
        assert kinds("objectives")[name].model_fields["objective"].annotation.__args__ == (name,)
        assert (project / "pipeline/objectives" / f"{name.replace('-', '_')}.py").is_file()


def test_objectives_are_read_without_torch(project, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    script = (
        "import sys; from pipeline.study.open import read_study; from pipeline.study.graph import Graph\n"
        "Graph(read_study([sys.argv[1]])).everything(); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "study.yaml"], cwd=project, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
