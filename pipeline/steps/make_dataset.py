"""Makes a dataset and publishes its splits."""

import importlib
from pathlib import Path
from typing import Any

from pipeline.artifacts.publishing import publishing
from pipeline.steps import command
from pipeline.study.names import module_name


def main(spec: dict[str, Any], out: Path) -> None:
    """Make a dataset and publish its splits."""
    kind = importlib.import_module(f"pipeline.datasets.{module_name(spec['kind'])}")
    with publishing(out, "dataset", spec, inputs={}) as draft:
        kind.write(kind.Spec.model_validate(spec), draft)


if __name__ == "__main__":
    command.run(main)
