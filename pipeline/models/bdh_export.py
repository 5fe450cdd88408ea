"""A BDH checkpoint in the format of the reference implementation.

A `.pt` file of plain tensors and numbers, which loads with `weights_only=True`: {"model": state dict, "config": its settings}.
Our parameters bear the reference's names already.
"""

from pathlib import Path

import torch
from torch import nn

from pipeline.study.models.bdh import BDH

NAMES = ("encoder", "encoder_v", "decoder", "embed.weight", "lm_head", "attn.freqs")


def export(model: nn.Module, spec: BDH, path: Path) -> None:
    """Writes `model` to `path`. Equal weights give equal bytes, whatever the path. Weights are float32, as the reference's are."""
    state = model.state_dict()
    vocabulary = len(state["embed.weight"])
    config = {
        "n_layer": spec.layers,
        "n_embd": spec.width,
        "dropout": spec.dropout,
        "n_head": spec.heads,
        "mlp_internal_dim_multiplier": spec.multiplier,
        "vocab_size": vocabulary,
    }
    weights = {name: state[name].detach().cpu().float().contiguous() for name in NAMES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # torch.save(path) would write the file's name into it
        torch.save({"model": weights, "config": config}, file)
