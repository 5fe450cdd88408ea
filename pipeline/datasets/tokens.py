"""Reads token streams, and turns tokens into text and back. The files are described in token_files.py."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.artifacts.manifest import Artifact


def read(dataset: Artifact, split: str) -> np.ndarray:
    """Token ids of a split, memory-mapped."""
    return np.load(dataset.file(f"{split}.npy"), mmap_mode="r")


def offsets(dataset: Artifact, split: str) -> np.ndarray:
    """Where documents lie, int64 (documents + 1,), memory-mapped: document i is `read(...)[offsets[i]:offsets[i + 1]]`."""
    return np.load(dataset.file(f"{split}.documents.npy"), mmap_mode="r")


def special(dataset: Artifact) -> np.ndarray:
    """Ids of tokens that stand for no text, such as the end of a document, int64 (n,)."""
    return np.array(dataset.facts["special"], dtype=np.int64)


def text(ids: np.ndarray | Sequence[int], dataset: Artifact) -> list[str]:
    """Each token as it is shown to a person: special ones by name, bytes that are no text by themselves as \\xNN."""
    texts = _vocabulary(dataset.file("vocabulary.parquet"), dataset.hash, "text")
    return [texts[i] for i in np.asarray(ids).tolist()]


def decode(dataset: Artifact, ids: np.ndarray | Sequence[int]) -> str:
    """The text that tokens make together; special ones are left out, bytes that are no text become \\xNN."""
    pieces = _vocabulary(dataset.file("vocabulary.parquet"), dataset.hash, "bytes")
    return b"".join([pieces[i] for i in np.asarray(ids).tolist()]).decode("utf-8", "backslashreplace")


def encode(dataset: Artifact, text: str) -> list[int]:
    """The tokens of a text, none put before or after it. Names of special tokens in it are these tokens, so that a prompt can
    hold them; in the documents of a dataset they are text."""
    if dataset.facts["tokenizer"] == "bytes":
        return list(text.encode())
    return _tokenizer(dataset.file(dataset.facts["tokenizer"]), dataset.hash).encode(text, add_special_tokens=False).ids


def beginning(dataset: Artifact) -> int:
    """The token before the text of a document: what stands in front of each where the tokenizer puts something there, or else
    what ends the one before it; a line break where documents have neither."""
    ids, at = read(dataset, "train"), offsets(dataset, "train")
    for found in (int(ids[at[0]]), int(ids[at[1] - 1])):
        if found in dataset.facts["special"]:
            return found
    return encode(dataset, "\n")[0]


@lru_cache(maxsize=8)
def _vocabulary(file: Path, published: str, column: str) -> list[Any]:
    """`published`, the dataset's hash, makes a dataset that was made again another call."""
    return pq.read_table(file, columns=[column])[column].to_pylist()


@lru_cache(maxsize=8)
def _tokenizer(file: Path, published: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))
