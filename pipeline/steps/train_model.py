"""Trains a model, or takes over a trained one, and publishes its weights, curve and losses."""

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import Draft, publishing
from pipeline.code import code
from pipeline.models import checkpoint
from pipeline.models.base import Network
from pipeline.models.examples import Examples, examples
from pipeline.models.language import LanguageModel
from pipeline.models.measure import measure, units
from pipeline.models.train import Result, Run, train
from pipeline.steps import command
from pipeline.study.language import Language
from pipeline.study.model import Model, Trained
from pipeline.training import processes
from pipeline.training.device import device
from pipeline.training.snapshot import Snapshots
from pipeline.training.tracking import tracker


def main(spec: dict[str, Any], dataset: Path, out: Path) -> None:
    """Train a model on a dataset, or take over a trained one, and publish its weights, training curve and losses."""
    processes.start(spec.get("training", {}).get("processes", 1))
    torch.set_num_threads(spec["threads"])
    data = Artifact.open(dataset)
    facts = {key: data.facts[key] for key in ("form", "width", "vocabulary", "tokenizer") if key in data.facts}
    names = data.facts["rows" if facts["form"] == "table" else "tokens"]
    splits = {split: examples(data, split, spec.get("context")) for split in names}
    snapshots = Snapshots(out, _identity(spec, data))
    with snapshots.alone() if processes.first() else nullcontext():
        result = None
        if fetched := checkpoint.fetched(spec, facts):
            model, settings, facts = fetched
            model.to(device())
        else:
            model, settings = checkpoint.build(spec, facts)
            result = _trained(spec, model, settings, splits, snapshots, out.name)
            if result is None:
                return
        with publishing(out, "model", spec, {"dataset": data}) as draft:
            if result:
                _write_run(draft, model, settings, result)
                _write_language(draft, model, settings, splits)
            draft.facts["pretrained"] = bool(fetched)
            checkpoint.save(draft, model, spec, facts)
            draft.write_json("metrics.json", _losses(model, settings, splits) if model.scored else {})
        snapshots.remove()


def _trained(
    spec: dict[str, Any], model: Network, settings: Model, splits: dict[str, Examples], snapshots: Snapshots, name: str
) -> Result | None:
    """The finished run of a fresh model; None in all processes of a group but the first."""
    assert isinstance(settings, Trained)
    model.to(device(), torch.float64 if settings.training.precision == "float64" else torch.float32)
    with processes.joined() as group:
        stored = snapshots.load()
        objectives = checkpoint.objectives(settings, model)
        with tracker(f"models/{name}", spec, group.first, fresh=stored is None) as shown:
            run = Run(model, settings, splits["train"], splits.get("validation"), objectives, group)
            if stored:
                run.restore(*stored)
            result = train(run, snapshots, shown)
        return result if group.first else None


def _identity(spec: dict[str, Any], data: Artifact) -> str:
    """Digest of all that decides a run: a snapshot of another one is of no use."""
    parts = [spec, data.hash, code("pipeline.steps.train_model", *checkpoint.modules(spec)), torch.__version__, device().type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _losses(model: Network, settings: Model, splits: dict[str, Examples]) -> dict[str, dict[str, float]]:
    """Losses on each split. Of a text's train split only as much is measured as the next one has: it may be long."""
    most = {"train": len(splits.get("validation") or splits.get("test") or splits["train"])} if isinstance(model, LanguageModel) else {}
    return {split: measure(model, some, settings.scoring_batch(), most.get(split)) for split, some in splits.items()}


def _write_run(draft: Draft, model: Network, settings: Model, result: Result) -> None:
    """The curve, the times beside it, and the weights that are not kept; `model` gets those that are."""
    assert isinstance(settings, Trained)
    result.curve.write(draft.path("training.parquet"))
    result.times.write(draft.aside("timing.parquet"))
    if result.best is None:
        return
    draft.facts |= {"best_step": result.best_step, "kept": settings.training.keep}
    if settings.training.keep == "best":
        checkpoint.write_weights(draft.path("last.safetensors"), model.state_dict())
        model.load_state_dict(result.best)
    else:
        checkpoint.write_weights(draft.path("best.safetensors"), result.best)


def _write_language(draft: Draft, model: Network, settings: Model, splits: dict[str, Examples]) -> None:
    """What a language model leaves besides: its units on the pool, a checkpoint for other tools."""
    if not isinstance(model, LanguageModel) or not isinstance(settings, Language):
        return
    draft.write_json("units.json", units(model, settings, splits))
    checkpoint.export(settings, model, draft)


if __name__ == "__main__":
    command.run(main)
