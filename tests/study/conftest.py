"""A small study as text, so that line numbers can be told."""

import pytest

from pipeline.study.open import read_study

STUDY = """\
name: small
datasets:
  rows:
    kind: pointer
    train: 100
    validation: 20
    test: 20
models:
  mlp:
    architecture: mlp
    dataset: rows
    hidden: [8, 16]
    seed: 3
    training:
      epochs: 2
      lr: 0.01
activations:
  acts:
    model: mlp
    hooks: [layer1, layer2]
saes:
  relu:
    architecture: relu
    activations: acts
    l1: 0.5
  topk:
    architecture: topk
    activations: acts
    hooks: [layer2]
    latents: 32
    k: 4
"""


@pytest.fixture
def text() -> str:
    """A valid study."""
    return STUDY


@pytest.fixture
def read(tmp_path):
    """Reads a study from texts, later ones over earlier ones."""

    def read(*texts: str):
        files = [tmp_path / f"study{number}.yaml" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)
        return read_study(files)

    return read
