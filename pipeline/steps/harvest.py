"""Records hooks of a model over one split into the shards of a store: all of them, or those of one of several jobs."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.activations.harvest import Job, harvest
from pipeline.activations.rows import Rows, tokens_left_out
from pipeline.activations.seal import leave
from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import withdraw
from pipeline.artifacts.storage import storage
from pipeline.code import code
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.steps import command
from pipeline.training.device import device

LIBRARIES = ("torch", "numpy", "zarr", "numcodecs")
"""Those that make or encode numbers."""


def main(spec: dict[str, Any], model: Path, dataset: Path, out: Path) -> None:
    """Record hooks of a model over one split of a dataset; the store is finished when `seal_store` publishes it."""
    run = spec.pop("run")
    torch.set_num_threads(spec["threads"])
    trained, data = Artifact.open(model), Artifact.open(dataset)
    split = examples(data, spec["split"], trained.spec.get("context"))
    rows = Rows(split, spec["batch"], tokens_left_out(data, spec["leave_out"]), spec["rows"])
    out.mkdir(parents=True, exist_ok=True)
    place = storage(out, run["location"])
    withdraw(out, place, spec, {"model": trained, "dataset": data})
    digest = _digest(spec, trained, data)
    job = Job(run["job"], run["jobs"], run["memory_mb"])
    facts = harvest(checkpoint.load(trained).to(device()), rows, spec, place, digest, job, device())
    settings = checkpoint.settings(trained.spec)
    meanings = {hook: settings.meaning(hook) for hook in spec["hooks"]}
    leave(out, job.number, {"digest": digest, "facts": facts, "meanings": meanings})


def _digest(spec: dict[str, Any], model: Artifact, dataset: Artifact) -> str:
    """Digest of what decides the bytes: shards under another one are of no use. The processor's model is not in it: nobody could resume
    on another node of a cluster, and medians tell where it matters most."""
    run_code = code("pipeline.steps.harvest", *checkpoint.modules(model.spec))
    where = torch.cuda.get_device_name(device()) if device().type == "cuda" else device().type
    parts = [spec, model.hash, dataset.hash, run_code, {name: version(name) for name in LIBRARIES}, where]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    command.run(main)
