"""What all training-time objectives share. An objective is one file in `objectives/`."""

import importlib
import pkgutil
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from pipeline.study import objectives
from pipeline.study.base import Count, Distinct, Natural, NonNegative, Spec
from pipeline.study.faults import not_among, raised, validation_faults
from pipeline.study.names import module_name


class Objective(Spec):
    """A change of what hooks of a language model give, or a term that is added to its loss, or both."""

    objective: str
    layers: Annotated[list[Natural], Field(min_length=1), Distinct] | None = None
    """Blocks it acts on, counted from 0; all when not given."""

    def acts_on(self) -> str:
        """The hook of each block that it reads or changes, such as `mlp_out`."""
        raise NotImplementedError

    def problems(self, layers: int, width: int) -> list[str]:
        """What is wrong with these settings for a model with so many blocks whose hook is so wide, as "setting: what"."""
        return [f"layers: there is no block {n}; the model has {layers}" for n in self.layers or () if n >= layers]


class Weighted(Objective):
    """An objective with a term."""

    weight: NonNegative = 1.0
    """Factor of the term in the loss. Terms are means over the layers."""


class OnTokens(Weighted):
    """An objective whose term is a statistic of tokens."""

    tokens: Count = 4096
    """Tokens of a batch that the term is computed on, drawn anew in each step where the batch has more. Special tokens are
    never among them."""


def names() -> list[str]:
    """Names of the objectives that there are, as a study writes them."""
    return [found.name.replace("_", "-") for found in pkgutil.iter_modules(objectives.__path__)]


def _of_its_kind(value: Any) -> Any:
    """The spec of the kind named. Looked up by name, so that a step's code depends on the kinds it uses alone."""
    if isinstance(value, Objective) or not isinstance(value, dict):
        return value
    kind, known = value.get("objective"), names()
    if not isinstance(kind, str) or kind not in known:
        missing = "is missing (allowed: " + ", ".join(known) + ")"
        raise raised([(("objective",), not_among(kind, known, "an objective") if "objective" in value else missing)])
    spec = importlib.import_module(f"pipeline.study.objectives.{module_name(kind)}").Spec
    try:
        return spec.model_validate(value)
    except ValidationError as error:
        # Told here, where the class is known; outside, it would be the settings of the base class that are said to be allowed.
        raise raised((fault.path, fault.message) for fault in validation_faults(error, spec, ())) from None


AnyObjective = Annotated[SerializeAsAny[Objective], BeforeValidator(_of_its_kind)]
