"""Names of variants."""

import re


def without_seed(variant: str) -> str:
    """The name that variants share which differ by their seed alone: `topk_k=32_seed=1` -> `topk_k=32`."""
    return re.sub(r"_seed=\d+(?=_|$)", "", variant)
