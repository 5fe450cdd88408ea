"""Records hooks of a model over one split into the shards of a store."""

from pathlib import Path
from typing import Any

import torch

from pipeline.activations.harvest import harvest
from pipeline.artifacts.manifest import Artifact
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.steps import command


def main(spec: dict[str, Any], model: Path, dataset: Path, out: Path) -> None:
    """Record hooks of a model over one split of a dataset; the store is finished when `seal_store` publishes it."""
    torch.set_num_threads(spec["threads"])
    trained, data = Artifact.open(model), Artifact.open(dataset)
    split = examples(data, spec["split"], trained.spec.get("context"))
    settings = checkpoint.settings(trained.spec)
    identity = {
        "model": trained.hash,
        "dataset": data.hash,
        "split": spec["split"],
        "meanings": {hook: settings.meaning(hook) for hook in spec["hooks"]},
    }
    out.mkdir(parents=True, exist_ok=True)
    harvest(checkpoint.load(trained), split, spec, out, identity)


if __name__ == "__main__":
    command.run(main)
