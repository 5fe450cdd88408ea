"""Models on disk: `model.safetensors` and `config.json`."""

import importlib
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts.manifest import Artifact, Draft
from pipeline.artifacts.seeds import derive
from pipeline.models.base import Network
from pipeline.study.model import Model


def build(spec: dict, facts: dict) -> tuple[Network, Model]:
    """A freshly initialised model for a dataset with these facts, and its parsed spec."""
    parsed = settings(spec)
    torch.manual_seed(derive(parsed.seed, "model", "weights"))
    return _architecture(spec).Model(parsed, facts), parsed


def settings(spec: dict) -> Model:
    """The parsed spec of a model, from what its manifest holds."""
    return _architecture(spec).Spec.model_validate({**spec, "dataset": "given"})


def _architecture(spec: dict) -> ModuleType:
    return importlib.import_module(f"pipeline.models.{spec['architecture'].replace('-', '_')}")


def save(draft: Draft, model: Network, spec: dict, facts: dict) -> None:
    """Writes weights and configuration."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, draft.path("model.safetensors"))
    draft.write_json("config.json", {"spec": spec, "data": facts})
    draft.facts |= {"data": facts, "parameters": sum(p.numel() for p in model.parameters())}


def load(artifact: Artifact) -> Network:
    """The model of an artifact, ready for inference."""
    model, _ = build(artifact.spec, artifact.facts["data"])
    weights: dict[str, torch.Tensor] = load_file(Path(artifact.file("model.safetensors")))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
