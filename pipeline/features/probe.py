"""Follows single inputs through a model and an SAE on one of its hooks."""

from typing import Any

import torch

from pipeline.models.hooks import record
from pipeline.saes.base import SAE


@torch.no_grad()
def probe(model: torch.nn.Module, sae: SAE, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """For each sample: input, expected, the model's output, how many latents are above the threshold, the strongest ones."""
    inputs = torch.tensor([sample["input"] for sample in spec["samples"]], dtype=torch.float32)
    outputs = model(inputs).tolist()
    latents = sae.encode(record(model, inputs, [spec["hook"]])[spec["hook"]])
    values, index = latents.topk(min(spec["top"], latents.shape[1]), dim=1)
    return [
        {
            "input": sample["input"],
            "expected": sample["expected"],
            "output": output,
            "active": int((row > spec["active_above"]).sum()),
            "top": [{"latent": i, "activation": v} for i, v in zip(ids, strongest, strict=True) if v > 0],
        }
        for sample, output, row, ids, strongest in zip(spec["samples"], outputs, latents, index.tolist(), values.tolist(), strict=True)
    ]
