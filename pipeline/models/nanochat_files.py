"""Reads the weights of a checkpoint of nanochat's."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.study import nanochat_files
from pipeline.study.models.nanochat import SHAPE, Nanochat

_COMPILED = "_orig_mod."
_PADDED = ("transformer.wte.weight", "lm_head.weight")


def read(spec: Nanochat) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name, all float32, and what to remember of where they came from. Raises UserError.

    Rows of padding, beyond the tokenizer's vocabulary, are left out: no token ever stands for them.
    """
    assert spec.checkpoint is not None
    try:
        file, meta = nanochat_files.files(spec.checkpoint, spec.step)
        shape = nanochat_files.shape(spec.checkpoint, spec.step)
        vocabulary = nanochat_files.vocabulary(meta)
    except ValueError as error:
        raise UserError(f"checkpoint: {error}") from None
    for key in SHAPE:
        if (getattr(spec, key) or spec.heads) != shape[key]:
            raise UserError(f"{key}: {getattr(spec, key)} is given, and the checkpoint '{spec.checkpoint}' has {shape[key]}")
    found = {name.removeprefix(_COMPILED): value for name, value in _loaded(file).items()}
    weights = {name: (value[:vocabulary] if name in _PADDED else value).float().contiguous() for name, value in found.items()}
    return weights, {"vocabulary": vocabulary, "files": {one.name: sha256(one) for one in (file, meta)}}


def _loaded(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{file} cannot be read as plain tensors ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise UserError(f"{file} is not a state dict: names with tensors are expected")
    return content
