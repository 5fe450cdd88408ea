"""Checks a harvested store and publishes its manifest."""

import json
from pathlib import Path
from typing import Any

from pipeline.activations.seal import PARTS, seal
from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.storage import storage
from pipeline.steps import command


def main(spec: dict[str, Any], model: Path, dataset: Path, out: Path) -> None:
    """Check every shard of a harvested store and publish the manifest that makes it readable."""
    run = spec.pop("run")
    trained, data = Artifact.open(model), Artifact.open(dataset)
    parts = [json.loads((out / PARTS / f"{job}.json").read_text()) for job in range(run["jobs"])]
    identity = {
        "model": trained.hash,
        "dataset": data.hash,
        "split": spec["split"],
        "length": trained.spec.get("context") or 1,
        "meanings": parts[0]["meanings"],
    }
    seal(out, storage(out, run["location"]), parts, spec, {"model": trained, "dataset": data}, identity)


if __name__ == "__main__":
    command.run(main)
