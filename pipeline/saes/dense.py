"""Loops over dense latents (B, M) that take several operations of PyTorch in one pass over memory; compiled as those of compiled.py.

Threads share the latents, from one of `edges` to the next. Sums over rows are taken in float32 over `_BLOCK` rows, in float64 over these.
What is compared with 0 stays NaN if it is.
"""

import numpy as np
from numba import prange

from pipeline.saes.compiled import loop

_BLOCK = 64


@loop()
def _count(values, counts, low, high):
    here = counts[low:high]
    here[:] = 0
    for row in range(len(values)):
        one = values[row, low:high]
        for m in range(len(here)):
            here[m] += np.int32(one[m] != 0)


@loop(parallel=True)
def count(edges, values, counts):
    """In how many rows each latent is not 0 (M,)."""
    for part in prange(len(edges) - 1):
        _count(values, counts, edges[part], edges[part + 1])


@loop()
def _kept_row(values, over, out, some):
    for m in range(len(some)):
        value = np.float32(0) if over[m] <= 0 else values[m]
        out[m] = value
        some[m] += value


@loop()
def _moved(some, total):
    for m in range(len(some)):
        total[m] += some[m]
        some[m] = 0


@loop()
def _kept(values, over, out, sums, low, high):
    some, total = np.zeros(high - low, np.float32), np.zeros(high - low, np.float64)
    for row in range(len(values)):
        _kept_row(values[row, low:high], over[row, low:high], out[row, low:high], some)
        if row % _BLOCK == _BLOCK - 1 or row == len(values) - 1:
            _moved(some, total)
    sums[low:high] = total


@loop(parallel=True)
def kept(edges, values, over, out, sums):
    """The values where `over` is positive, else 0, and their sums over the rows (M,)."""
    for part in prange(len(edges) - 1):
        _kept(values, over, out, sums, edges[part], edges[part + 1])


@loop()
def _jump_row(z, theta, f, counts):
    for m in range(len(z)):
        below = z[m] <= theta[m]
        f[m] = np.float32(0) if below else z[m]
        counts[m] += np.int32(not below)


@loop()
def _jump(z, theta, f, counts, low, high):
    counts[low:high] = 0
    for row in range(len(z)):
        _jump_row(z[row, low:high], theta[low:high], f[row, low:high], counts[low:high])


@loop(parallel=True)
def jump(edges, z, theta, f, counts):
    """z where it is larger than theta (M,), else 0, and in how many rows it is (M,)."""
    for part in prange(len(edges) - 1):
        _jump(z, theta, f, counts, edges[part], edges[part + 1])


@loop()
def _jump_back_row(z, theta, half, grad, grad_z, some, counts):
    for m in range(len(z)):
        above = z[m] - theta[m]
        grad_z[m] = np.float32(0) if above <= 0 else grad[m]
        inside = abs(above) < half
        some[m] += grad[m] if inside else np.float32(0)
        counts[m] += np.int32(inside)


@loop()
def _jump_back(z, theta, half, grad, grad_z, sums, counts, low, high):
    some, total = np.zeros(high - low, np.float32), np.zeros(high - low, np.float64)
    counts[low:high] = 0
    for row in range(len(z)):
        _jump_back_row(z[row, low:high], theta[low:high], half, grad[row, low:high], grad_z[row, low:high], some, counts[low:high])
        if row % _BLOCK == _BLOCK - 1 or row == len(z) - 1:
            _moved(some, total)
    sums[low:high] = total


@loop(parallel=True)
def jump_back(edges, z, theta, half, grad, grad_z, sums, counts):
    """The gradient of z, and of each latent (M,) the sum of the gradients of rows where z is within `half` of theta, and their number."""
    for part in prange(len(edges) - 1):
        _jump_back(z, theta, half, grad, grad_z, sums, counts, edges[part], edges[part + 1])


@loop(fastmath={"contract"})
def _scaled_row(values, over, scale, offset, out):
    for m in range(len(values)):
        one = values[m] * scale[m] + offset[m]
        out[m] = np.float32(0) if one <= 0 or over[m] <= 0 else one


@loop()
def _scaled(values, over, scale, offset, out, low, high):
    for row in range(len(values)):
        _scaled_row(values[row, low:high], over[row, low:high], scale[low:high], offset[low:high], out[row, low:high])


@loop(parallel=True)
def scaled(edges, values, over, scale, offset, out):
    """relu(values * scale + offset) where `over` is positive, else 0; scale and offset are of each latent (M,)."""
    for part in prange(len(edges) - 1):
        _scaled(values, over, scale, offset, out, edges[part], edges[part + 1])


@loop()
def _scaled_back_row(values, out, scale, grad, grad_values, some, others):
    for m in range(len(values)):
        given = np.float32(0) if out[m] <= 0 else grad[m]
        grad_values[m] = given * scale[m]
        some[m] += given
        others[m] += given * values[m]


@loop()
def _scaled_back(values, out, scale, grad, grad_values, grad_scale, grad_offset, low, high):
    some, total = np.zeros(high - low, np.float32), np.zeros(high - low, np.float64)
    others, weighted = np.zeros(high - low, np.float32), np.zeros(high - low, np.float64)
    for row in range(len(values)):
        given = (values[row, low:high], out[row, low:high], scale[low:high], grad[row, low:high], grad_values[row, low:high])
        _scaled_back_row(*given, some, others)
        if row % _BLOCK == _BLOCK - 1 or row == len(values) - 1:
            _moved(some, total)
            _moved(others, weighted)
    grad_offset[low:high], grad_scale[low:high] = total, weighted


@loop(parallel=True)
def scaled_back(edges, values, out, scale, grad, grad_values, grad_scale, grad_offset):
    """The gradients of what `scaled` was given, by that of what it gave, `out`."""
    for part in prange(len(edges) - 1):
        _scaled_back(values, out, scale, grad, grad_values, grad_scale, grad_offset, edges[part], edges[part + 1])
