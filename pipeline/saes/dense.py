"""Activation functions of dense latents (B, M), each in one pass over memory forward and one backward, with the bias and all that is summed
over the rows; compiled as the loops of compiled.py.

Threads share the latents, from one of `edges` to the next. Sums over rows are taken in float32 over `_BLOCK` rows, in float64 over these.
What is compared with 0 stays NaN if it is.
"""

import numpy as np
from numba import prange

from pipeline.saes.compiled import loop

_BLOCK = 64


@loop()
def _moved(some, total):
    for m in range(len(some)):
        total[m] += some[m]
        some[m] = 0


@loop()
def _empty(low, high):
    return np.zeros(high - low, np.float32), np.zeros(high - low, np.float64)


@loop()
def _ends_block(row, rows):
    return row % _BLOCK == _BLOCK - 1 or row == rows - 1


@loop()
def _relu_row(pre, bias, counts, some):
    for m in range(len(some)):
        value = pre[m] + bias[m]
        value = np.float32(0) if value <= 0 else value
        pre[m] = value
        counts[m] += np.int32(value != 0)
        some[m] += value


@loop()
def _relu(pre, bias, counts, sums, low, high):
    some, total = _empty(low, high)
    counts[low:high] = 0
    for row in range(len(pre)):
        _relu_row(pre[row, low:high], bias[low:high], counts[low:high], some)
        if _ends_block(row, len(pre)):
            _moved(some, total)
    sums[low:high] = total


@loop(parallel=True)
def relu(edges, pre, bias, counts, sums):
    """relu(pre + bias) in place of `pre`; of each latent (M,) in how many rows that is not 0, and its sum."""
    for part in prange(len(edges) - 1):
        _relu(pre, bias, counts, sums, edges[part], edges[part + 1])


@loop()
def _relu_back_row(f, grad, more, out, some):
    for m in range(len(some)):
        given = grad[m] + more[m]
        value = np.float32(0) if f[m] <= 0 else given
        out[m] = value
        some[m] += value


@loop()
def _relu_back(f, grad, more, out, sums, low, high):
    some, total = _empty(low, high)
    for row in range(len(f)):
        _relu_back_row(f[row, low:high], grad[row, low:high], more[low:high], out[row, low:high], some)
        if _ends_block(row, len(f)):
            _moved(some, total)
    sums[low:high] = total


@loop(parallel=True)
def relu_back(edges, f, grad, more, out, sums):
    """The gradient of `pre`, and its sums, which are the bias' (M,); `more` is the gradient of the sums."""
    for part in prange(len(edges) - 1):
        _relu_back(f, grad, more, out, sums, edges[part], edges[part + 1])


@loop()
def _jump_row(pre, bias, theta, f, counts):
    for m in range(len(pre)):
        z = pre[m] + bias[m]
        below = z <= theta[m]
        f[m] = np.float32(0) if below else z
        counts[m] += np.int32(not below)


@loop()
def _jump(pre, bias, theta, f, counts, low, high):
    counts[low:high] = 0
    for row in range(len(pre)):
        _jump_row(pre[row, low:high], bias[low:high], theta[low:high], f[row, low:high], counts[low:high])


@loop(parallel=True)
def jump(edges, pre, bias, theta, f, counts):
    """z = pre + bias where it is larger than theta (M,), else 0, and in how many rows it is (M,)."""
    for part in prange(len(edges) - 1):
        _jump(pre, bias, theta, f, counts, edges[part], edges[part + 1])


@loop()
def _jump_back_row(pre, bias, theta, half, grad, out, some, others, counts):
    for m in range(len(pre)):
        above = pre[m] + bias[m] - theta[m]
        value = np.float32(0) if above <= 0 else grad[m]
        inside = abs(above) < half
        out[m] = value
        some[m] += value
        others[m] += grad[m] if inside else np.float32(0)
        counts[m] += np.int32(inside)


@loop()
def _jump_back(pre, bias, theta, half, grad, out, sums, of_band, counts, low, high):
    some, total = _empty(low, high)
    others, banded = _empty(low, high)
    counts[low:high] = 0
    for row in range(len(pre)):
        here = (pre[row, low:high], bias[low:high], theta[low:high], half, grad[row, low:high], out[row, low:high])
        _jump_back_row(*here, some, others, counts[low:high])
        if _ends_block(row, len(pre)):
            _moved(some, total)
            _moved(others, banded)
    sums[low:high], of_band[low:high] = total, banded


@loop(parallel=True)
def jump_back(edges, pre, bias, theta, half, grad, out, sums, of_band, counts):
    """The gradient of `pre`, and its sums; of each latent (M,) the sum of the gradients of rows where z is within `half` of theta, and
    their number."""
    for part in prange(len(edges) - 1):
        _jump_back(pre, bias, theta, half, grad, out, sums, of_band, counts, edges[part], edges[part + 1])


@loop(fastmath={"contract"})
def _gated_row(pre, bias, scale, offset, f, counts, some):
    for m in range(len(pre)):
        gate = pre[m] + bias[m]
        gate = np.float32(0) if gate <= 0 else gate
        value = gate * scale[m] + offset[m]
        value = np.float32(0) if value <= 0 or gate <= 0 else value
        pre[m], f[m] = gate, value
        counts[m] += np.int32(value != 0)
        some[m] += gate


@loop()
def _gated(pre, bias, scale, offset, f, counts, sums, low, high):
    some, total = _empty(low, high)
    counts[low:high] = 0
    for row in range(len(pre)):
        here = (pre[row, low:high], bias[low:high], scale[low:high], offset[low:high], f[row, low:high])
        _gated_row(*here, counts[low:high], some)
        if _ends_block(row, len(pre)):
            _moved(some, total)
    sums[low:high] = total


@loop(parallel=True)
def gated(edges, pre, bias, scale, offset, f, counts, sums):
    """gate = relu(pre + bias) in place of `pre`, and f = relu(gate * scale + offset) where that is positive, else 0; of each latent (M,)
    in how many rows f is not 0, and the sum of the gate."""
    for part in prange(len(edges) - 1):
        _gated(pre, bias, scale, offset, f, counts, sums, edges[part], edges[part + 1])


@loop(fastmath={"contract"})
def _gated_back_row(gate, f, scale, grad_gate, grad_f, more, out, some, others, third):
    for m in range(len(gate)):
        of_value = np.float32(0) if f[m] <= 0 else grad_f[m]
        given = grad_gate[m] + more[m] + of_value * scale[m]
        value = np.float32(0) if gate[m] <= 0 else given
        out[m] = value
        some[m] += value
        others[m] += of_value
        third[m] += of_value * gate[m]


@loop()
def _gated_back(gate, f, scale, grad_gate, grad_f, more, out, of_bias, of_scale, of_offset, low, high):
    some, total = _empty(low, high)
    others, offsets = _empty(low, high)
    third, scales = _empty(low, high)
    for row in range(len(gate)):
        here = (gate[row, low:high], f[row, low:high], scale[low:high], grad_gate[row, low:high], grad_f[row, low:high], more[low:high])
        _gated_back_row(*here, out[row, low:high], some, others, third)
        if _ends_block(row, len(gate)):
            _moved(some, total)
            _moved(others, offsets)
            _moved(third, scales)
    of_bias[low:high], of_offset[low:high], of_scale[low:high] = total, offsets, scales


@loop(parallel=True)
def gated_back(edges, gate, f, scale, grad_gate, grad_f, more, out, of_bias, of_scale, of_offset):
    """The gradients of `pre` and of bias, scale and offset (M,); `more` is the gradient of the sums."""
    for part in prange(len(edges) - 1):
        _gated_back(gate, f, scale, grad_gate, grad_f, more, out, of_bias, of_scale, of_offset, edges[part], edges[part + 1])
