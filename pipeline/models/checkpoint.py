"""Models on disk: `model.safetensors` and `config.json`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import Draft
from pipeline.artifacts.seeds import derive
from pipeline.models.base import Network
from pipeline.study.model import Model
from pipeline.study.names import module_name


def build(spec: dict, facts: dict) -> tuple[Network, Model]:
    """A freshly initialised model for a dataset with these facts, and its parsed spec."""
    parsed = settings(spec)
    torch.manual_seed(derive(parsed.seed, "model", "weights"))
    model = _architecture(spec).Model(parsed, facts)
    if getattr(parsed, "objectives", []):
        model.shaping.extend(importlib.import_module("pipeline.objectives.base").shaping(parsed))
    return model, parsed


def modules(spec: dict) -> list[str]:
    """Modules that are loaded by name for a model of this spec: its architecture's and its objectives'."""
    objectives = [f"pipeline.objectives.{module_name(one['objective'])}" for one in spec.get("objectives", [])]
    return [f"pipeline.models.{module_name(spec['architecture'])}", *objectives]


def settings(spec: dict) -> Model:
    """The parsed spec of a model, from what its manifest holds."""
    return _architecture(spec).Spec.model_validate({**spec, "dataset": "given"})


def _architecture(spec: dict) -> ModuleType:
    return importlib.import_module(f"pipeline.models.{module_name(spec['architecture'])}")


def fetched(spec: dict, facts: dict) -> tuple[Network, Model, dict] | None:
    """A model that was trained elsewhere, its parsed spec, and the facts it is built from; None where it is to be trained."""
    parsed = settings(spec)
    if not parsed.pretrained():
        return None
    model, facts = _architecture(spec).fetch(parsed, facts)
    return model, parsed, facts


def objectives(parsed: Model, model: Network) -> list:
    """All training-time objectives of a model in the study's order; those that are part of it as they stand in `model`."""
    if not getattr(parsed, "objectives", []):
        return []
    return importlib.import_module("pipeline.objectives.base").objectives(parsed, model)


def export(parsed: Model, model: Network, draft: Draft) -> None:
    """Writes the model in another tool's format where its settings name a file for that."""
    if file := getattr(parsed, "export", None):
        _architecture({"architecture": parsed.architecture}).export(model, parsed, draft.path(file))


def save(draft: Draft, model: Network, spec: dict, facts: dict) -> None:
    """Writes weights and configuration."""
    write_weights(draft.path("model.safetensors"), model.state_dict())
    draft.write_json("config.json", {"spec": spec, "data": facts})
    draft.facts |= {"data": facts, "parameters": sum(p.numel() for p in model.parameters())}


def write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes a state dict as safetensors."""
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


def load(artifact: Artifact) -> Network:
    """The model of an artifact, ready for inference."""
    model, _ = build(artifact.spec, artifact.facts["data"])
    weights: dict[str, torch.Tensor] = load_file(Path(artifact.file("model.safetensors")))
    if any(value.dtype == torch.float64 for value in weights.values()):
        model.double()
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
