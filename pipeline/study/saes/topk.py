"""Settings of the TopK SAE."""

from typing import Literal

from pipeline.study.ksparse import KSparse


class TopK(KSparse):
    """The k largest pre-activations of an input survive (Gao et al. 2024, arXiv 2406.04093)."""

    architecture: Literal["topk"]
    signed: bool = False
    """Whether the largest survive as they are, negative ones too; otherwise ReLU follows."""
