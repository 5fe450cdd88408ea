"""Which kinds of dataset, model, SAE and training-time objective exist: one per file in datasets/, models/, saes/, objectives/.

The folders are listed, not imported from a hand-kept table: a new file is a new kind, and no other file changes, so that
nothing runs again because of it.
"""

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, get_args

from pipeline.study import datasets, models, objectives, saes
from pipeline.study.base import Spec

TAGS = {"datasets": "kind", "models": "architecture", "saes": "architecture"}
"""Sections of a study whose entries are of a kind, and the setting that says which."""
_ALL_TAGS = {**TAGS, "objectives": "objective"}
_FOLDERS = {"datasets": datasets, "models": models, "saes": saes, "objectives": objectives}


def _spec(module: ModuleType, tag: str) -> type[Any]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Spec) and value.__module__ == module.__name__ and tag in value.model_fields:
            return value
    raise TypeError(f"{module.__name__} has no spec with a field '{tag}'")


@cache
def kinds(section: str) -> dict[str, type[Any]]:
    """Spec classes of a section ("datasets", "models", "saes"), or of "objectives", by the name a study uses."""
    tag, folder = _ALL_TAGS[section], _FOLDERS[section]
    specs = [_spec(importlib.import_module(f"{folder.__name__}.{found.name}"), tag) for found in pkgutil.iter_modules(folder.__path__)]
    return {get_args(spec.model_fields[tag].annotation)[0]: spec for spec in specs}
