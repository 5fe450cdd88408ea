"""A BDH checkpoint in the format of the reference implementation.

A `.pt` file of plain tensors and numbers, which loads with `weights_only=True`: {"model": state dict, "config": its settings}.
Our parameters bear the reference's names already.
"""

from pathlib import Path

import torch

from pipeline.models.base import Network
from pipeline.study.models.bdh import BDH

NAMES = ("encoder", "encoder_v", "decoder", "embed.weight", "lm_head", "attn.freqs")


def export(model: Network, spec: BDH, path: Path) -> None:
    """Writes `model` to `path`. Equal weights give equal bytes, whatever the path. Weights are float32, as the reference's are."""
    if model.shaping:
        raise ValueError("what objectives have made part of a model has no place in the reference implementation")
    state = model.state_dict()
    config = {
        "n_layer": spec.layers,
        "n_embd": spec.width,
        "dropout": spec.dropout,
        "n_head": spec.heads,
        "mlp_internal_dim_multiplier": spec.multiplier,
        "vocab_size": len(state["embed.weight"]),
    }
    weights = {name: state[name].detach().cpu().float().contiguous() for name in NAMES}
    with path.open("wb") as file:  # torch.save(path) would write the file's name into it
        torch.save({"model": weights, "config": config}, file)
