"""Where a folder that a study names is looked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def folder(name: str) -> Path:
    """The folder `name`, relative to where the workflow runs, or where there is none the one of the data folder (`data_dir`,
    SAEFLOW_DATA). When neither is there, the path as it was given."""
    data = os.environ.get("SAEFLOW_DATA")
    inside = Path(data) / name if data else None
    return inside if inside and inside.is_dir() and not Path(name).is_dir() else Path(name)


@contextmanager
def data_folder(path: Any) -> Iterator[None]:
    """The data folder is `path` meanwhile, where a study names one: models and tokenizers are looked for while it is parsed."""
    before = os.environ.get("SAEFLOW_DATA")
    if isinstance(path, str):
        os.environ["SAEFLOW_DATA"] = path
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("SAEFLOW_DATA", None)
        else:
            os.environ["SAEFLOW_DATA"] = before
