"""What tests of harvests share: a small model, and how stores are compared."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.models import checkpoint

MODEL = {"architecture": "gpt", "layers": 2, "width": 8, "heads": 2, "context": 8, "threads": 1}
FACTS = {"vocabulary": 11}
HOOKS = ["blocks.0.mlp_hidden", "blocks.1.resid_post"]
SPEC = {"hooks": HOOKS, "batch": 2, "chunk_rows": 4, "shard_rows": 8, "threads": 1}
"""Stores of 8 shards over the 61 positions that `ids` gives."""


def ids(count: int = 62) -> np.ndarray:
    """Tokens of the small model."""
    return np.random.default_rng(0).integers(0, 11, count)


def gpt(seed: int = 0) -> Any:
    """A small model, not trained."""
    return checkpoint.build({**MODEL, "seed": seed}, FACTS)[0].eval()


def published_gpt(folder: Path, seed: int = 0) -> Artifact:
    """The same as an artifact that steps read."""
    spec = {**MODEL, "seed": seed}
    with publishing(folder, "model", spec, {}) as draft:
        checkpoint.save(draft, gpt(seed), spec, FACTS)
    return Artifact.open(folder / MANIFEST)


def digests(folder: Path) -> dict[str, str]:
    """Every file of an artifact but those that say how it was made."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    mine = {name: path for name, path in files.items() if name != "run.json" and not name.startswith("parts/")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in mine.items()}


def made(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each written shard's sums are, and since when: it is another one when the shard is made again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "sums").glob("??????.safetensors")}
