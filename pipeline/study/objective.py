"""What all training-time objectives share. An objective is one file in `objectives/`."""

import importlib
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from pipeline.study.base import Count, Distinct, Natural, NonNegative, Spec


class Objective(Spec):
    """A term that is added to the loss of a language model, or a change of what its hooks give."""

    acts_on: ClassVar[str]
    """The hook of each block that it reads or changes, such as `mlp_out`."""

    objective: str
    weight: NonNegative = 1.0
    """Factor of the term in the loss. Terms are means over the layers."""
    layers: Annotated[list[Natural], Distinct] | None = None
    """Blocks it acts on, counted from 0; all when not given."""
    tokens: Count = 4096
    """Tokens of a batch that the term is computed on, drawn anew in each step where the batch has more. Special tokens are
    never among them."""

    def problems(self, layers: int, width: int) -> list[str]:
        """What is wrong with these settings for a model with so many blocks whose hook is so wide, as "setting: what"."""
        return [f"layers: there is no block {n}; the model has {layers}" for n in self.layers or () if n >= layers]


def _of_its_kind(value: Any) -> Any:
    """The spec class of the kind named. Looked up by name, so that a step's code depends on the kinds it uses alone."""
    if isinstance(value, Objective) or not isinstance(value, dict):
        return value
    if not isinstance(kind := value.get("objective"), str):
        raise ValueError("an objective is a mapping with a name under 'objective'")
    try:
        module = importlib.import_module(f"pipeline.study.objectives.{kind.replace('-', '_')}")
    except ModuleNotFoundError:
        from pipeline.study.faults import not_among
        from pipeline.study.kinds import names

        raise ValueError(not_among(kind, names("objectives"), "an objective")) from None
    return module.Spec.model_validate(value)


AnyObjective = Annotated[SerializeAsAny[Objective], BeforeValidator(_of_its_kind)]
