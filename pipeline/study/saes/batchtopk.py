"""Settings of the BatchTopK SAE."""

from typing import Literal

from pipeline.study.ksparse import KSparse


class BatchTopK(KSparse):
    """The largest pre-activations of a batch survive, k times as many as it has rows (Bussmann et al. 2024, arXiv 2412.06410); after
    training, those above a threshold."""

    architecture: Literal["batchtopk"]
