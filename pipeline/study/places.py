"""Where a folder that a study names is looked for."""

import os
from pathlib import Path


def folder(name: str) -> Path:
    """The folder `name`, relative to where the workflow runs, or where there is none the one of the data folder (`data_dir`,
    SAEFLOW_DATA). When neither is there, the path as it was given."""
    data = os.environ.get("SAEFLOW_DATA")
    inside = Path(data) / name if data else None
    return inside if inside and inside.is_dir() and not Path(name).is_dir() else Path(name)
