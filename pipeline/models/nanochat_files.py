"""Reads the weights of a checkpoint of nanochat's."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.models import foreign
from pipeline.study import nanochat_files
from pipeline.study.models.nanochat import Nanochat

_COMPILED = "_orig_mod."
_PADDED = ("transformer.wte.weight", "lm_head.weight")


def read(spec: Nanochat) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by name, all float32, and what to remember of where they came from. Raises UserError.

    Rows of padding, beyond the tokenizer's vocabulary, are left out: no token ever stands for them.
    """
    assert spec.checkpoint is not None
    try:
        file, meta = nanochat_files.files(spec.checkpoint, spec.step)
        vocabulary = nanochat_files.vocabulary(meta)
    except ValueError as error:
        raise UserError(f"checkpoint: {error}") from None
    if problems := spec.problems():
        raise UserError(problems[0])
    found = {name.removeprefix(_COMPILED): value for name, value in _loaded(file).items()}
    foreign.require_dense(found.items(), str(file))
    # what has no rows has another shape than the model, which is told where all shapes are compared
    rows = {name: value[:vocabulary] for name, value in found.items() if name in _PADDED and value.ndim}
    weights = {name: value.float().contiguous() for name, value in {**found, **rows}.items()}
    return weights, {"vocabulary": vocabulary, "files": {one.name: sha256(one) for one in (file, meta)}}


def _loaded(file: Path) -> dict[str, Tensor]:
    with foreign.reading(f"{file} cannot be read as plain tensors"):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise UserError(f"{file} is not a state dict: names with tensors are expected")
    return content
