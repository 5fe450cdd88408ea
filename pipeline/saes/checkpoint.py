"""SAEs on disk, in SAELens' own layout: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.

What SAELens does not know stands under `metadata` in cfg.json.
"""

import importlib
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts.manifest import Artifact, Draft
from pipeline.saes.base import SAE
from pipeline.study.names import module_name

SAELENS_VERSION = "6.54.12"
"""The version whose layout this is. SAELens converts a folder without one as if it were from before version 6."""
WEIGHTS = "sae_weights.safetensors"


def build(spec: dict[str, Any], width: int, out: int | None = None) -> tuple[SAE, Any]:
    """An SAE with zero weights for a hook of this width (a transcoder: whose output has width `out`), and its parsed spec."""
    architecture = importlib.import_module(f"pipeline.saes.{module_name(spec['architecture'])}")
    own = {key: value for key, value in spec.items() if key not in ("hook", "output", "metadata")}
    if own.get("outputs"):
        own["hooks"] = [spec["hook"]]
    settings = architecture.Spec.model_validate({**own, "activations": "given"})
    return architecture.Module(settings, width, settings.latents or 8 * width, out or width), settings


def save(draft: Draft, sae: SAE, spec: dict[str, Any], log_sparsity: torch.Tensor) -> None:
    """Writes the three files. `log_sparsity` is log10 of each latent's firing frequency (M,)."""
    width, latents = sae.W_enc.shape
    save_file({name: value.contiguous() for name, value in sae.state_dict().items()}, draft.path(WEIGHTS))
    save_file({"sparsity": log_sparsity}, draft.path("sparsity.safetensors"))
    metadata = {**spec["metadata"], "hook_name": spec["hook"], "sae_lens_version": SAELENS_VERSION, "saeflow": spec}
    cfg = {
        "architecture": sae.architecture,
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "reshape_activations": "none",
        **sae.saelens(),
        "metadata": metadata,
    }
    draft.write_json("cfg.json", cfg)
    draft.facts |= {"width": width, "latents": latents, "parameters": sum(p.numel() for p in sae.parameters())}


def load(artifact: Artifact) -> SAE:
    """The SAE of an artifact, ready for inference."""
    sae, _ = build(artifact.spec, artifact.facts["width"])
    sae.load_state_dict(load_file(artifact.file(WEIGHTS)))
    return sae.eval().requires_grad_(False)
