"""The JSON Schema of a study file, for editors: generated from the same classes that check it."""

import json
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

from pipeline.study.kinds import TAGS, kinds
from pipeline.study.study import File


class Like(BaseModel):
    """An entry with the settings of another one of its section, but for those it states itself."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    like: str
    """The other entry. What mappings hold is merged, such as two sweeps; everything else is replaced."""


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study file."""
    sections: dict[str, Any] = {}
    for section, tag in TAGS.items():
        entry = _one_of([_with_objectives(spec) for spec in kinds(section).values()], tag)
        field = File.model_fields[section]
        sections[section] = (dict[str, Like | entry], ... if field.is_required() else {})  # type: ignore[valid-type]
    whole = create_model("Study", __base__=File, __doc__="A saeflow study.", **sections)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole.model_json_schema()}


def _one_of(specs: list[type[Any]], tag: str) -> Any:
    """A value of any of `specs`, told apart by its setting `tag`."""
    return Annotated[Union[tuple(specs)], Field(discriminator=tag)]  # noqa: UP007


def _with_objectives(spec: type[Any]) -> type[Any]:
    """The same spec, its `objectives` of the kinds that there are; a spec itself knows their base alone."""
    if (field := spec.model_fields.get("objectives")) is None:
        return spec
    one = _one_of(list(kinds("objectives").values()), "objective")
    told: Any = Field(default=[], description=field.description)
    return create_model(spec.__name__, __base__=spec, __doc__=spec.__doc__, objectives=(list[one], told))  # type: ignore[valid-type]


def text() -> str:
    """The schema as it stands in the project, docs/study.schema.json."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"
