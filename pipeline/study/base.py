"""What every part of a study is made of: a frozen pydantic model and a few checked types.

No module of this package imports torch: a wrong study has to fail before anything heavy loads.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Spec(BaseModel):
    """Settings of one thing. Unknown keys are refused; the docstring under a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text and `yes` as true; `--config` hands every nested value over as text."""
    if isinstance(value, bool):
        raise ValueError("a number is expected, not a truth value (YAML reads yes, no, on, off as such)")
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise ValueError("a number is expected") from None
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


def _whole(value: Any) -> Any:
    value = _number(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("a whole number is expected")
    return value


def _safe_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9+])?", value) or ".." in value:
        raise ValueError("a name becomes a folder: letters, digits, '.', '_', '+', '-', no '..', and a letter or digit at both ends")
    return value


def _distinct(value: list[Any]) -> list[Any]:
    twice = next((one for one in value if value.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' stands twice")
    return value


Number = BeforeValidator(_number)
Whole = BeforeValidator(_whole)

Distinct = AfterValidator(_distinct)

Name = Annotated[str, AfterValidator(_safe_name)]
Count = Annotated[int, Whole, Field(ge=1, lt=2**53)]
Natural = Annotated[int, Whole, Field(ge=0, lt=2**53)]
Seed = Annotated[int, Whole, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Number, Field(gt=0)]
NonNegative = Annotated[float, Number, Field(ge=0)]
Fraction = Annotated[float, Number, Field(ge=0, le=1)]
Share = Annotated[float, Number, Field(ge=0, lt=1)]
