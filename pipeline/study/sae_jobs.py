"""What the jobs that train SAEs ask of a machine."""

from collections.abc import Mapping
from typing import TypeVar

from pipeline.study.sae import SAE

SAMPLE = 2**15
"""Rows that a geometric median is taken of and that dead latents are resampled from (pipeline/saes/train.py)."""
MEASURED = 2**10
"""Rows at a time of those that are held out."""
COPIES = 10
"""Of a variant's weights at one time: they, gradients, two moments, the best and the last good ones; copies while they are measured or
their state is saved."""
DENSE, SPARSE = 20, 6
"""Numbers for each latent and row of a batch, of architectures without and with a fixed number of active latents: somewhat more than the
peak memory of runs with 32,768 latents says."""
MB = 2**20
Given = TypeVar("Given")


def megabytes(variants: list[SAE], width: int, out: int) -> int:
    """Memory of a job that trains some variants on a hook of this width, or from it to one of width `out`; 0 where that is not known, and
    then weights are not counted."""
    training, latents = variants[0].training, [sae.latents or 8 * width for sae in variants]
    weights = sum(COPIES * 4 * count * (width + out) for count in latents)
    at_once = max(DENSE if sae.k_at(1.0) is None else SPARSE for sae in variants)
    rows = max(-(-training.batch // training.processes), MEASURED)
    sampled = any(sae.training.resample or sae.b_dec == "geometric-median" for sae in variants)
    held = 4 * (width + out) * (sum({sae.training.validate_on for sae in variants}) + SAMPLE * sampled)
    each = 500 + 2 * training.memory_mb + (weights + 4 * at_once * rows * max(latents) + held) // MB
    return 1500 + training.processes * each


def set_resources(given: Mapping[str, Given], groups: list[list[str]]) -> dict[str, Given]:
    """What a profile or the command line sets, by rule, with what it sets for `train_saes` under the name of each rule that trains variants
    together, unless that one is set itself: their names are the study's, which a profile does not know."""
    own = {f"train_saes_{group[0]}": given["train_saes"] for group in groups} if "train_saes" in given else {}
    return {**own, **given}
