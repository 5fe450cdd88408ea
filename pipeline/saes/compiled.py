"""Loops over pairs (row, latent) and over rows of weights that PyTorch has no operation for, compiled by numba: a processor's, in float32.
What calls them has the same in PyTorch, for all else.

Each is a loop over rows; threads share it in stretches, from one of `edges` to the next, and it gives the same bits whatever these are.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

SUMS = {"reassoc", "contract", "nsz"}
"""What a sum needs to be taken in the processor's vectors; NaN stays NaN."""
FROM = 2**20
"""Numbers read from which a loop is worth its threads."""
_TILE = 2**20
"""Bytes of a matrix that stay in a core's own cache while all rows pass."""
_ROWS = 64
"""Rows from which a thread is worth it."""
_ONE = Lock()
"""Some of numba's ways to share a loop take one at a time."""


def loop(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function at its first call, and keeps what is compiled for later processes, where a folder can be written for it."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither beside the file nor in the user's folder
            return njit(nogil=True, **options)(function)

    return compiled


def pays(numbers: int, *given: Tensor) -> bool:
    """Whether a loop may take some tensors, and is worth it."""
    plain = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in given)
    return plain and numbers >= FROM


def stretches(rows: int) -> np.ndarray:
    """Where the stretches of rows begin that threads share, as many as PyTorch has, and where the last one ends."""
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    threads = max(1, min(torch.get_num_threads(), most, rows // _ROWS))
    return np.arange(threads + 1) * rows // threads


def parallel(function: Callable[..., None], rows: int, *given: Any) -> None:
    """Runs a loop over all rows."""
    edges, threads = stretches(rows), torch.get_num_threads()
    with _ONE:
        numba.set_num_threads(len(edges) - 1)
        function(edges, *(each.detach().numpy() if isinstance(each, Tensor) else each for each in given))
    if torch.get_num_threads() != threads:  # numba, when it starts its own, sets the number of OpenMP's, which are PyTorch's as well
        torch.set_num_threads(threads)


@loop()
def tiles_pay(pairs, rows, table, several):
    """Whether a row has `several` pairs in a tile of a table."""
    return pairs * _TILE >= several * rows * 4 * table.size


@loop(fastmath=SUMS)
def _product(left, right):
    total = np.float32(0)
    for d in range(len(left)):
        total += left[d] * right[d]
    return total


@loop(fastmath=SUMS)
def _two_products(left, one, other):
    first, second = np.float32(0), np.float32(0)
    for d in range(len(left)):
        first += left[d] * one[d]
        second += left[d] * other[d]
    return first, second


@loop()
def _inner(left, right, starts, index, out, low, high):
    tile = max(1, _TILE // (4 * right.shape[1]))
    if not tiles_pay(len(index), len(left), right, 4):
        tile = len(right)
    at = starts[low : high + 1].copy()
    for edge in range(tile, len(right) + tile, tile):
        for row in range(low, high):
            n, end = at[row - low], starts[row + 1]
            while n + 1 < end and index[n] < edge and index[n + 1] < edge:
                out[n], out[n + 1] = _two_products(left[row], right[index[n]], right[index[n + 1]])
                n += 2
            if n < end and index[n] < edge:
                out[n] = _product(left[row], right[index[n]])
                n += 1
            at[row - low] = n


@loop(parallel=True)
def inner(edges, left, right, starts, index, out):
    """Inner products of rows of left (B, D) and right (M, D) at pairs that are in order of their rows, and best of their latents."""
    for part in prange(len(edges) - 1):
        _inner(left, right, starts, index, out, edges[part], edges[part + 1])


@loop(fastmath={"contract"})
def _add(out, a, u):
    for d in range(len(out)):
        out[d] += u * a[d]


@loop(fastmath={"contract"})
def _add_four(out, a, b, c, d, u, v, w, x):
    for e in range(len(out)):
        out[e] += u * a[e] + v * b[e] + w * c[e] + x * d[e]


@loop()
def _sums(starts, index, weights, table, out, low, high):
    tile = max(1, _TILE // (4 * table.shape[1]))
    for row in range(low, high):
        for d in range(table.shape[1]):
            out[row, d] = 0
    at = starts[low : high + 1].copy()
    for edge in range(tile, len(table) + tile, tile):
        for row in range(low, high):
            n, end = at[row - low], starts[row + 1]
            while n + 3 < end and index[n + 3] < edge:
                a, b, c, d = table[index[n]], table[index[n + 1]], table[index[n + 2]], table[index[n + 3]]
                _add_four(out[row], a, b, c, d, weights[n], weights[n + 1], weights[n + 2], weights[n + 3])
                n += 4
            while n < end and index[n] < edge:
                _add(out[row], table[index[n]], weights[n])
                n += 1
            at[row - low] = n


@loop(parallel=True)
def sums(edges, starts, index, weights, table, out):
    """Weighted sums (N, D) of rows of a table, one for each stretch of the pairs, whose indices rise within it."""
    for part in prange(len(edges) - 1):
        _sums(starts, index, weights, table, out, edges[part], edges[part + 1])


@loop(fastmath={"contract"})
def _less(left, right, out):
    for d in range(len(out)):
        out[d] = left[d] - right[d]


@loop()
def _error(first, end, index, weights, table, out, inner):
    n = first
    while n + 3 < end:
        a, b, c, d = table[index[n]], table[index[n + 1]], table[index[n + 2]], table[index[n + 3]]
        _add_four(out, a, b, c, d, weights[n], weights[n + 1], weights[n + 2], weights[n + 3])
        n += 4
    while n < end:
        _add(out, table[index[n]], weights[n])
        n += 1
    n = first  # the rows of the table are in the cache
    while n + 1 < end:
        inner[n], inner[n + 1] = _two_products(out, table[index[n]], table[index[n + 1]])
        n += 2
    if n < end:
        inner[n] = _product(out, table[index[n]])


@loop()
def _errors(starts, index, weights, table, bias, wanted, out, squared, inner, low, high):
    for row in range(low, high):
        for each in range(len(weights)):
            error = out[each, row]
            _less(bias, wanted[row], error)
            _error(starts[row], starts[row + 1], index, weights[each], table, error, inner[each])
            squared[each, row] = _product(error, error)


@loop(parallel=True)
def errors(edges, starts, index, weights, table, bias, wanted, out, squared, inner):
    """For each of some weights (C, N) of the pairs: weighted sums of rows of a table, plus a bias (D,), less what is wanted (B, D), into
    `out` (C, B, D); the squared norms of these (C, B); and their inner products with the pairs' rows of the table (C, N)."""
    for part in prange(len(edges) - 1):
        _errors(starts, index, weights, table, bias, wanted, out, squared, inner, edges[part], edges[part + 1])


@loop()
def _values_at(pre, starts, index, out, low, high):
    for row in range(low, high):
        for n in range(starts[row], starts[row + 1]):
            out[n] = pre[row, index[n]]


@loop(parallel=True)
def values_at(edges, pre, starts, index, out):
    """Values of pre (B, M) at pairs."""
    for part in prange(len(edges) - 1):
        _values_at(pre, starts, index, out, edges[part], edges[part + 1])


@loop()
def transpose(starts, index, latents):
    """Where each latent's pairs begin (M + 1,), their rows, and which pairs they are, in order of their rows."""
    begins, rows, order = np.zeros(latents + 1, np.int32), np.empty(len(index), np.int32), np.empty(len(index), np.int32)
    for n in range(len(index)):
        begins[index[n] + 1] += 1
    for latent in range(latents):
        begins[latent + 1] += begins[latent]
    at = begins[:-1].copy()
    for row in range(len(starts) - 1):
        for n in range(starts[row], starts[row + 1]):
            place = at[index[n]]
            rows[place], order[place], at[index[n]] = row, n, place + 1
    return begins, rows, order


@loop()
def by_latent(index, values, latents):
    """Sum of each latent's values (M,), in float64."""
    out = np.zeros(latents, np.float64)
    for n in range(len(index)):
        out[index[n]] += values[n]
    return out


@loop(fastmath=SUMS)
def _take_along(grad, weights, low, high):
    for row in range(low, high):
        along = _product(grad[row], weights[row])
        for d in range(weights.shape[1]):
            grad[row, d] -= along * weights[row, d]


@loop(parallel=True)
def take_along(edges, grad, weights):
    """Takes out of each row of `grad` what lies along that of `weights`, of norm 1."""
    for part in prange(len(edges) - 1):
        _take_along(grad, weights, edges[part], edges[part + 1])


@loop(fastmath=SUMS)
def _to_norm_one(weights, least, low, high):
    for row in range(low, high):
        norm = max(np.sqrt(_product(weights[row], weights[row])), least)
        for d in range(weights.shape[1]):
            weights[row, d] /= norm


@loop(parallel=True)
def to_norm_one(edges, weights, least):
    """Divides each row by its norm, or by `least` where that is larger."""
    for part in prange(len(edges) - 1):
        _to_norm_one(weights, least, edges[part], edges[part + 1])
