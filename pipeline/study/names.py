"""Names of variants, and of the modules of kinds."""

import re


def without_seed(variant: str) -> str:
    """The name that variants share which differ by their seed alone: `topk_k=32_seed=1` -> `topk_k=32`."""
    return re.sub(r"_seed=\d+(?=_|$)", "", variant)


def module_name(kind: str) -> str:
    """The module of a kind: `shifted-relu` is in shifted_relu.py."""
    return kind.replace("-", "_")
