"""Follows the study's samples through a model and one of its SAEs."""

from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.features.probe import probe
from pipeline.models import checkpoint as models
from pipeline.saes import checkpoint
from pipeline.steps import command


def main(spec: dict[str, Any], sae: Path, model: Path, out: Path) -> None:
    """Follow single inputs through a model and an SAE: output, active latents, the strongest of them."""
    torch.set_num_threads(1)
    trained, host = Artifact.open(sae), Artifact.open(model)
    with publishing(out, "probe", spec, {"sae": trained, "model": host}) as draft:
        draft.write_json("probe.json", probe(models.load(host), checkpoint.load(trained), spec))


if __name__ == "__main__":
    command.run(main)
