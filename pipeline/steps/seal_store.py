"""Checks a harvested store and publishes its manifest."""

from pathlib import Path
from typing import Any

from pipeline.activations.seal import seal
from pipeline.artifacts.manifest import Artifact
from pipeline.steps import command


def main(spec: dict[str, Any], model: Path, dataset: Path, out: Path) -> None:
    """Check every shard of a harvested store and publish the manifest that makes it readable."""
    seal(out, spec, {"model": Artifact.open(model), "dataset": Artifact.open(dataset)})


if __name__ == "__main__":
    command.run(main)
