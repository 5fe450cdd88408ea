"""Token streams on disk: one .npy array per split, in the smallest unsigned type that holds the vocabulary."""

import numpy as np

from pipeline.artifacts.manifest import Artifact, Draft


def write(draft: Draft, splits: dict[str, np.ndarray], vocabulary: int, tokenizer: str) -> None:
    """Writes the token ids (tokens,) of each split and the facts that readers need."""
    dtype = np.min_scalar_type(vocabulary - 1)
    for split, ids in splits.items():
        np.save(draft.path(f"{split}.npy"), ids.astype(dtype, copy=False))
    draft.facts |= {
        "form": "tokens",
        "vocabulary": vocabulary,
        "tokenizer": tokenizer,
        "tokens": {split: len(ids) for split, ids in splits.items()},
    }


def read(dataset: Artifact, split: str) -> np.ndarray:
    """Token ids of a split, memory-mapped."""
    return np.load(dataset.file(f"{split}.npy"), mmap_mode="r")


def text(ids: np.ndarray, tokenizer: str) -> list[str]:
    """Each token as it is shown to a person. Bytes that are no ASCII character are shown as \\xNN."""
    if tokenizer != "bytes":
        raise ValueError(f"unknown tokenizer {tokenizer!r}")
    return [chr(i) if i < 128 else f"\\x{i:02x}" for i in np.asarray(ids).tolist()]
