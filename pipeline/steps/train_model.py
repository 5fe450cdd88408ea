"""Trains a model and publishes its weights, curve and losses."""

from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts.manifest import Artifact, publishing
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.train import measure, train
from pipeline.steps import command


def main(spec: dict[str, Any], dataset: Path, out: Path) -> None:
    """Train a model on a dataset and publish its weights, training curve and losses."""
    torch.set_num_threads(spec["threads"])
    data = Artifact.open(dataset)
    facts = {key: data.facts[key] for key in ("form", "width", "vocabulary", "tokenizer") if key in data.facts}
    model, settings = checkpoint.build(spec, facts)
    names = data.facts["rows" if facts["form"] == "table" else "tokens"]
    splits = {split: examples(data, split, spec.get("context")) for split in names}
    with publishing(out, "model", spec, {"dataset": data}) as draft:
        curve = train(model, settings, splits["train"], splits.get("validation"))
        curve.write(draft.path("training.parquet"))
        checkpoint.save(draft, model, spec, facts)
        draft.write_json("metrics.json", {split: measure(model, some, settings.training.batch) for split, some in splits.items()})


if __name__ == "__main__":
    command.run(main)
