"""What the processes of steps find in their environment, on this machine and in a cluster's jobs."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def for_steps(project: str, data_dir: str | None, configfiles: Iterable[str | Path], tracking: dict[str, Any]) -> None:
    """Makes `python -m pipeline.steps.<step>` work from any folder, by the Python that runs Snakemake.

    SAEFLOW_CONFIGFILES lets a message name the command that repairs, SAEFLOW_TRACKING says where curves are shown, SAEFLOW_DATA
    where corpora and models are looked for. None of these is a param of a rule: they decide nothing of what is made.
    """
    _in_front("PATH", str(Path(sys.executable).parent))
    _in_front("PYTHONPATH", project)
    if data_dir:
        os.environ["SAEFLOW_DATA"] = data_dir
    os.environ["SAEFLOW_TRACKING"] = json.dumps(tracking)
    os.environ["SAEFLOW_CONFIGFILES"] = " ".join(map(str, configfiles))


def _in_front(name: str, path: str) -> None:
    os.environ[name] = os.pathsep.join(dict.fromkeys([path, *filter(None, os.environ.get(name, "").split(os.pathsep))]))
