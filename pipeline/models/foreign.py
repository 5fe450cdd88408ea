"""Weights that others wrote: faults of reading them on one line, and what they have to be to be computed with."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever is raised inside into a UserError of one line: `what`, and the reason in brackets.

    A spoiled pickle raises almost anything (EOFError, struct.error, IndexError, KeyError, AssertionError ...), so all is caught:
    keep nothing inside but the call that reads.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # PyTorch, of bytes that are no pickle
            yield
    except Exception as error:
        raise UserError(f"{what} ({reason(error)})") from None


def reason(error: Exception) -> str:
    """What an error says, on one line that is not long. PyTorch's advice to let a file run its code is not passed on."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if "arbitrary code" in text:
        other = re.search(r"GLOBAL (\S+)", text)
        return f"it holds {other[1]}, and nothing but tensors is read" if other else "it is damaged, or holds other things than tensors"
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def require_dense(weights: Iterable[tuple[str, Tensor]], whose: str) -> None:
    """Raises UserError, naming the first, where a weight is sparse, without values, or not of floating-point numbers."""
    for name, value in weights:
        if value.layout != torch.strided or value.is_nested or value.is_meta or not value.is_floating_point():
            kind = "a tensor without values" if value.is_meta else f"{value.layout}, {value.dtype}".replace("torch.", "")
            raise UserError(f"{whose}: {name} is {kind}, and a dense tensor of floating-point numbers is expected")


def require_finite(weights: Iterable[tuple[str, Tensor]], whose: str) -> None:
    """Raises UserError, naming the first, where a weight holds NaN or infinity."""
    for name, value in weights:
        if not value.isfinite().all():
            raise UserError(f"{whose}: {name} holds NaN or infinity in {str(value.dtype).removeprefix('torch.')}")
