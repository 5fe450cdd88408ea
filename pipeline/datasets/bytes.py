"""A text as bytes: its beginning is the train split, its end is validation."""

from pathlib import Path

import numpy as np

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Draft, sha256
from pipeline.datasets import corpora, tokens
from pipeline.study.datasets.bytes import CORPORA
from pipeline.study.datasets.bytes import Bytes as Spec


def write(spec: Spec, draft: Draft) -> None:
    """Reads the text and writes the splits."""
    if spec.corpus:
        file = corpora.find(CORPORA[spec.corpus], spec.path)
    else:
        assert spec.path is not None
        file = Path(spec.path)
        if not file.is_file():
            raise UserError(f"{file}: no such file")
    content = np.fromfile(file, dtype=np.uint8)
    cut = int(round(len(content) * (1 - spec.held_out), 6))  # 10 * (1 - 0.9) is a hair under 1
    if not 0 < cut < len(content):
        raise UserError(f"{file}: {len(content)} bytes cannot be split, {spec.held_out:g} of them held out")
    tokens.write(draft, {"train": content[:cut], "validation": content[cut:]}, Spec.vocabulary, "bytes")
    draft.facts["sources"] = {"text": sha256(file)}
