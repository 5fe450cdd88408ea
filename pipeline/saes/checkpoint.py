"""SAEs on disk, in SAELens' own layout: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.

What SAELens does not know stands under `metadata` in cfg.json, and `probe.safetensors` holds a few rows with what the SAE made of them:
whoever loads it computes them again and compares, so that weights that are read with another formula, in another layout or in other units
are refused.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import Draft
from pipeline.saes.base import SAE
from pipeline.study.names import module_name

SAELENS_VERSION = "6.54.12"
"""The version whose layout this is. SAELens converts a folder without one as if it were from before version 6."""
WEIGHTS, CONFIG, SPARSITY, PROBE = "sae_weights.safetensors", "cfg.json", "sparsity.safetensors", "probe.safetensors"
PROBE_ROWS = 16
CLOSE = 1e-3
"""Difference from the stored values, as a share of a row's largest, that other machines' rounding may make."""
AT_THE_EDGE = 0.01
"""Share of the stored active latents that may come out farther off, or be active where they were not or the other way: pre-activations
so near a threshold that rounding decides."""


def build(spec: dict[str, Any], width: int, out: int | None = None) -> tuple[SAE, Any]:
    """An SAE with zero weights for `spec["hook"]` of this width, and its parsed spec. A transcoder (`outputs`) predicts `spec["output"]`
    from it, of width `out`."""
    architecture = importlib.import_module(f"pipeline.saes.{module_name(spec['architecture'])}")
    own = {key: value for key, value in spec.items() if key not in ("hook", "output", "metadata")}
    if own.get("outputs"):
        own |= {"hooks": [spec["hook"]], "outputs": [spec["output"]]}
    settings = architecture.Spec.model_validate({**own, "activations": "given"})
    return architecture.Module(settings, width, settings.latents or 8 * width, out or width), settings


def save(draft: Draft, sae: SAE, spec: dict[str, Any], log_sparsity: Tensor, rows_ND: Tensor) -> None:
    """Writes all files. `log_sparsity` is log10 of each latent's firing frequency (M,), `rows_ND` some raw activations, of which the first
    few become the probe."""
    write_weights(draft.path(WEIGHTS), sae)
    write_config(draft, sae, spec)
    save_file({"sparsity": log_sparsity}, draft.path(SPARSITY))
    with torch.no_grad():
        x_PD = rows_ND[:PROBE_ROWS].contiguous()
        save_file({"input": x_PD, "latents": sae.encode(x_PD), "reconstruction": sae(x_PD)}, draft.path(PROBE))


def write_weights(path: Path, sae: SAE) -> None:
    """Writes what inference needs of an SAE: one set of weights, of the last step, the best, or a snapshot."""
    save_file({name: value.contiguous() for name, value in sae.state_dict().items()}, path)


def write_config(draft: Draft, sae: SAE, spec: dict[str, Any]) -> None:
    """Writes cfg.json, and the facts of the artifact."""
    (width, latents), out = sae.W_enc.shape, sae.W_dec.shape[1]
    normalise = sae.spec.normalise
    cfg = {
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "reshape_activations": "none",
        **sae.saelens(),
        "metadata": {
            **spec["metadata"],
            "hook_name": spec["hook"],
            **({"hook_name_out": spec["output"]} if spec.get("outputs") else {}),
            "latent_units": "whitened activations" if normalise.scale == "whiten" else "activations",
            "sae_lens_version": SAELENS_VERSION,
            "saeflow": spec,
        },
    }
    draft.write_json(CONFIG, cfg)
    draft.facts |= {"width": width, "out": out, "latents": latents, "parameters": sum(p.numel() for p in sae.parameters())}


def load(artifact: Artifact, weights: str = WEIGHTS) -> SAE:
    """The SAE of an artifact, ready for inference; `weights` names another set than the one the study goes on with. Raises DamagedArtifact
    where they are not of the architecture and size that the artifact says, or do not give what was stored with them."""
    sae, _ = build(artifact.spec, artifact.facts["width"], artifact.facts["out"])
    tensors = load_file(artifact.file(weights))
    _check_shapes(artifact, weights, tensors, sae.state_dict())
    sae.load_state_dict(tensors)
    sae.eval().requires_grad_(False)
    if weights == WEIGHTS:
        _check_values(artifact, sae)
    return sae


def _check_shapes(artifact: Artifact, name: str, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key in sorted(tensors.keys() | expected.keys()):
        found, wanted = (tuple(some[key].shape) if key in some else None for some in (tensors, expected))
        if found != wanted:
            artifact.damaged(name, f"{key} is {found or 'missing'}, and the spec makes it {wanted or 'no tensor'}")


@torch.no_grad()
def _check_values(artifact: Artifact, sae: SAE) -> None:
    probe = load_file(artifact.file(PROBE))
    x_PD, f_PM = probe["input"], probe["latents"]
    found_PM = sae.encode(x_PD)
    off = _differ(found_PM, f_PM) | ((found_PM != 0) != (f_PM != 0))
    if int(off.sum()) > max(1.0, AT_THE_EDGE * int((f_PM != 0).sum())):
        artifact.damaged(PROBE, f"{WEIGHTS} gives other latents for its rows than those stored ({int(off.sum())} of {off.numel()} differ)")
    found, wanted = sae.predict(f_PM, x_PD), probe["reconstruction"]
    if _differ(found, wanted).any():
        artifact.damaged(PROBE, f"{WEIGHTS} gives other reconstructions for its latents than those stored")


def _differ(found_PN: Tensor, wanted_PN: Tensor) -> Tensor:
    """Where values are farther off than rounding makes them, row by row: a large row hides no other. NaN is off."""
    return ~((found_PN - wanted_PN).abs() <= CLOSE * wanted_PN.abs().amax(1, keepdim=True))
