"""The JSON Schema that editors use agrees with what a study may hold."""

from typing import get_args

import jsonschema
import pytest
import yaml

from pipeline.study.corpora import CORPORA
from pipeline.study.datasets.text import Text
from pipeline.study.schema import schema, text


@pytest.fixture(scope="module")
def validator():
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_schema_in_docs_is_the_one_of_the_code(project):
    assert (project / "docs/study.schema.json").read_text() == text()


def test_every_study_of_the_project_is_accepted(validator, project):
    for file in [project / "config.yaml", *(project / "studies").glob("*.yaml")]:
        validator.validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    ("section", "entry", "key"),
    [
        ("datasets", "pointer", "trian"),
        ("models", "mlp", "hiden"),
        ("activations", "layer2", "hoks"),
        ("saes", "topk", "latnets"),
        ("saes", "relu", "k"),
    ],
)
def test_a_misspelt_key_is_rejected_where_it_stands(validator, project, section, entry, key):
    study = yaml.safe_load((project / "config.yaml").read_text())
    study[section][entry][key] = 1
    faults = list(validator.iter_errors(study))
    assert [list(fault.path) for fault in faults] == [[section, entry]]
    assert key in str(faults[0].message) or any(key in str(inner.message) for inner in faults[0].context)


def test_a_section_and_a_nested_key_are_checked_too(validator, project):
    study = yaml.safe_load((project / "config.yaml").read_text())
    assert not validator.is_valid({**study, "sae": {}})
    study["saes"]["topk"]["training"]["lrr"] = 1
    assert not validator.is_valid(study)


def test_help_texts_reach_the_editor(validator):
    described = validator.schema["$defs"]["TopK"]["properties"]["k"]["description"]
    assert described == "Latents that may fire for one input; of a batch, on average."


def test_every_corpus_can_be_named_and_every_name_is_a_corpus():
    (names, _none) = get_args(Text.model_fields["corpus"].annotation)
    assert set(get_args(names)) == set(CORPORA)
