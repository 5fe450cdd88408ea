"""Which split a document goes to, and where a stream is cut."""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.seeds import derive


def of_documents(numbers: np.ndarray, seed: int, validation: float, test: float) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for each document number (n,), uint8.

    A share of a 64-bit hash of (seed, number): it needs no memory, and no document changes its split when others are
    appended, nor from validation or test to train when shares grow. The hash is splitmix64 (Steele et al. 2014).
    """
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive(seed, "dataset", "splits"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    share = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return np.where(share < validation, 1, np.where(share < validation + test, 2, 0)).astype(np.uint8)


def of_stream(length: int, validation: float, test: float) -> Sequence[int]:
    """Where train ends and where validation ends, of `length` bytes in the order train, validation, test."""
    ends = (1 - validation - test, 1 - test)
    return [int(round(length * end, 6)) for end in ends]  # 10 * (1 - 0.9) is a hair under 1
