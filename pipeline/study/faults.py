"""Faults of a study, one line each: where, what, what is allowed, the nearest good value."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Path = tuple[str | int, ...]


_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}
_TYPES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    "string_type": "text",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping"),
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, at a path of keys and list positions in the study."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class StudyError(Exception):
    """A study that cannot run. Its text has one line per fault."""

    def __init__(self, faults: Iterable[Fault | str]) -> None:
        self.faults = list(dict.fromkeys(faults))
        super().__init__("\n".join(str(fault) for fault in self.faults))


def dotted(path: Path) -> str:
    """`("saes", "relu", "hooks", 0)` as `saes.relu.hooks[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def not_among(value: object, allowed: Iterable[str], what: str) -> str:
    """`'top_k' is not an architecture; did you mean 'topk'? (relu, topk)`."""
    allowed = list(allowed)
    if not allowed:
        return f"'{value}' is not {what}; there is none"
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    return f"'{value}' is not {what}; {f'did you mean {near[0]!r}? ' if near else 'allowed: '}({', '.join(allowed)})"


def validation_faults(error: ValidationError, spec: type[BaseModel], at: Path) -> list[Fault]:
    """pydantic's findings about a value of class `spec` at path `at`, in our words."""
    return [_fault(details, spec, at) for details in error.errors()]


def raised(faults: Iterable[tuple[Path, str]]) -> ValidationError:
    """What a validator raises where it tells faults itself: paths inside the value it validates, and what is wrong there."""
    errors: list[InitErrorDetails] = [
        {"type": PydanticCustomError("told", "{text}", {"text": text}), "loc": path, "input": None} for path, text in faults
    ]
    return ValidationError.from_exception_data("study", errors)


def _fault(details: ErrorDetails, spec: type[BaseModel], at: Path) -> Fault:
    where: Path = tuple(key for key in details["loc"] if key != "[key]")
    owner = _class_at(spec, where)
    if details["type"] == "extra_forbidden":
        fields = _class_at(spec, where[:-1])
        return Fault(at + where, not_among(where[-1], fields.model_fields if fields else (), "a setting"))
    message = _message(details)
    key, _, rest = message.partition(": ")
    if owner and key in owner.model_fields and rest:
        return Fault((*at, *where, key), rest)
    return Fault(at + where, message)


def _message(details: ErrorDetails) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    shown = f"'{value}'" if isinstance(value, str) else repr(value) if isinstance(value, (int, float)) else f"a {_noun(value)}"
    if kind == "invalid_key":
        return "a key that is not text (YAML reads yes, no, on, off as truth values; quote it)"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"]) + ("" if isinstance(value, dict) else f"; found {shown}")
    if kind == "literal_error":
        return not_among(value, [str(x) for x in _expected(context["expected"])], "allowed here")
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{shown}: has to be {words} {context[key]}"
    if kind in _TYPES:
        return f"{_TYPES[kind]} is expected, not {shown}"
    if kind == "too_short":
        return f"at least {context['min_length']} is needed"
    return details["msg"]


def _noun(value: object) -> str:
    return {dict: "mapping", list: "list", tuple: "list", type(None): "null (an empty value)"}.get(type(value), type(value).__name__)


def _expected(text: str) -> list[str]:
    return [part.strip().strip("'") for part in text.replace(" or ", ", ").split(",")]


def _class_at(spec: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The spec class that validates what stands at `path` inside a value of class `spec`."""
    current: Any = spec
    for key in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(key))
            current = field.annotation if field else None
        else:
            current = next(iter(get_args(current)[::-1]), None)
        options = [option for option in (current, *get_args(current)) if isinstance(option, type) and issubclass(option, BaseModel)]
        current = options[0] if options else current
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
