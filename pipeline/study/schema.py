"""The JSON Schema of a study file, for editors: generated from the same classes that check it."""

import json
from typing import Annotated, Any, Union

from pydantic import Field, create_model

from pipeline.study.kinds import TAGS, kinds
from pipeline.study.study import File


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study file."""
    sections: dict[str, Any] = {}
    for section, tag in TAGS.items():
        entry = Annotated[Union[tuple(kinds(section).values())], Field(discriminator=tag)]  # type: ignore[valid-type]  # noqa: UP007
        field = File.model_fields[section]
        sections[section] = (dict[str, entry], ... if field.is_required() else {})  # type: ignore[valid-type]
    whole = create_model("Study", __base__=File, __doc__="A saeflow study.", **sections)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole.model_json_schema()}


def text() -> str:
    """The schema as it stands in the project, docs/study.schema.json."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"
