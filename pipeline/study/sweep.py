"""Sweeps: one entry of a study becomes its variants, each with a folder name that says what differs."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from pipeline.study.base import Spec
from pipeline.study.faults import Fault, Path, validation_faults

FIXED = ("sweep", "kind", "dataset", "activations", "hooks", "architecture")
"""Settings that cannot be swept: they say what an entry is."""


def variants(name: str, raw: dict[str, Any], spec: type[Spec], at: Path, faults: list[Fault]) -> dict[str, Any]:
    """Validated variants of the entry `name` by folder name: `topk`, or `topk_k=32_seed=1` where k and seed are swept.

    Every combination of the swept values is one variant. What is wrong is appended to `faults`, at the swept value when
    that is the cause.
    """
    sweep = raw.get("sweep") or {}
    before = len(faults)
    if not isinstance(sweep, dict):
        faults.append(Fault((*at, "sweep"), "a mapping of settings to lists of values is expected"))
        return {}
    for key, values in sweep.items():
        if not isinstance(key, str):
            faults.append(Fault((*at, "sweep"), f"the key {key!r} is not text (YAML reads yes, no, on, off as truth values; quote it)"))
        elif not isinstance(values, list) or not values:
            faults.append(Fault((*at, "sweep", key), "a list of at least one value is expected"))
        elif key.split(".")[0] in FIXED:
            faults.append(Fault((*at, "sweep", key), f"'{key}' cannot be swept; write one entry for each"))
    if len(faults) > before:
        return {}
    found: dict[str, Any] = {}
    for positions in itertools.product(*(range(len(values)) for values in sweep.values())):
        chosen = {key: (sweep[key][position], position) for key, position in zip(sweep, positions, strict=True)}
        settings = {key: value for key, value in raw.items() if key != "sweep"}
        for key, (value, _) in chosen.items():
            settings = _with(settings, key.split("."), value)
        try:
            variant = spec.model_validate(settings)
        except ValidationError as error:
            faults.extend(_at_sweep(fault, at, chosen) for fault in validation_faults(error, spec, at))
            continue
        if unknown := [Fault((*at, "sweep", key), f"'{key}' is not a setting") for key in sweep if not _has(variant, key)]:
            faults.extend(unknown)
            continue
        folder = "_".join([name, *(f"{_short(key, sweep)}={_text(_get(variant, key))}" for key in sweep)])
        if sweep and not re.fullmatch(r"[A-Za-z0-9._=+-]+", folder):
            faults.append(Fault((*at, "sweep"), f"the variant '{folder}' cannot be a folder's name; sweep numbers, words or lists of them"))
        elif folder in found:
            faults.append(Fault((*at, "sweep"), f"two variants would both be called '{folder}'; every value may stand once"))
        found[folder] = variant
    return found


def _short(key: str, sweep: Iterable[str]) -> str:
    """How a folder's name calls a swept key: `objectives.0.weight` is `weight` where no other swept key ends so."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in sweep].count(last) == 1 else key


def _with(settings: Any, keys: list[str], value: Any) -> Any:
    """Settings with `value` at `keys`; a number counts the entries of a list from 0. What cannot hold the key stays, so that
    validation names it."""
    if not keys:
        return value
    head, *rest = keys
    if isinstance(settings, list):
        return [_with(one, rest, value) if str(n) == head else one for n, one in enumerate(settings)]
    if isinstance(settings, dict | None):
        return {**(settings or {}), head: _with((settings or {}).get(head), rest, value)}
    return settings


def _get(variant: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        variant = {str(n): one for n, one in enumerate(variant)}[key] if isinstance(variant, list) else getattr(variant, key)
    return variant


def _has(variant: Any, dotted: str) -> bool:
    try:
        _get(variant, dotted)
    except (AttributeError, KeyError):
        return False
    return True


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(_text(one) for one in value)
    return {True: "true", False: "false", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def _at_sweep(fault: Fault, at: Path, chosen: dict[str, tuple[Any, int]]) -> Fault:
    inside = fault.path[len(at) :]
    for key, (_, position) in chosen.items():
        keys = tuple(key.split("."))
        if tuple(map(str, inside[: len(keys)])) == keys:
            return Fault((*at, "sweep", key, position, *inside[len(keys) :]), fault.message)
    return fault
