"""Numbers as stores hold them and as readers see them."""

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def rows_of(rows: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def stored(rows: np.ndarray, dtype: str) -> np.ndarray:
    """As a store holds them: bfloat16 as uint16 of the same bits."""
    found = torch.from_numpy(rows).to(DTYPES[dtype])
    return found.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else found.numpy()


def rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    """As readers of this project see them."""
    return torch.from_numpy(rows).to(DTYPES[dtype]).float().numpy()


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
