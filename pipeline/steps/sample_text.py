"""Lets a language model go on with a text."""

from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.artifacts.seeds import derive
from pipeline.datasets import tokens
from pipeline.models import checkpoint
from pipeline.models.language import LanguageModel
from pipeline.models.sample import go_on
from pipeline.steps import command
from pipeline.training.device import device


def main(spec: dict[str, Any], model: Path, dataset: Path, out: Path) -> None:
    """Let a trained language model go on with a prompt, and publish the text."""
    torch.set_num_threads(spec["threads"])
    trained, data = Artifact.open(model), Artifact.open(dataset)
    network = checkpoint.load(trained).to(device())
    if not isinstance(network, LanguageModel):
        raise UserError(f"{model}: no language model, so there is no text it could go on with")
    prompt = tokens.encode(data, spec["prompt"]) or [tokens.beginning(data)]
    ids = go_on(network, prompt, spec["tokens"], spec["top_k"], spec["temperature"], derive(spec["seed"], "model", "sample"))
    with publishing(out, "sample", spec, {"model": trained, "dataset": data}) as draft:
        draft.write_json("sample.json", {"prompt": spec["prompt"], "text": tokens.decode(data, ids), "ids": ids})


if __name__ == "__main__":
    command.run(main)
