"""Loops that choose latents by rough pre-activations and, among these, by exact ones; compiled as those of compiled.py.

Numbers are compared by their bits: as integers, positive floats are in the same order, and their upper halves too. numba takes what is
made of two integers to have 64 bits; where it is made back into 16 or 32, vectors hold four or two times as many.

What is found for a row goes into a room that the rows of a stretch share, one behind the other: the first of the stretch begins at `room`
times its number, and `count` says how much each row has (screen.py takes it together).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from pipeline.saes.compiled import SUMS, loop

_INFINITE = np.int16(0x7F80)
"""The exponent of infinity and NaN, in the upper half of a float."""
_MAGNITUDE = np.int16(0x7FFF)
_COUNTED = 2**14
"""Keys whose number an int16 can hold."""
GUESS = 0x4000
"""The key of 2, where a search begins."""


@intrinsic
def _bits(_: Any, value: types.Type) -> Any:
    return types.int32(types.float32), lambda context, builder, signature, given: builder.bitcast(given[0], ir.IntType(32))


@intrinsic
def _number(_: Any, bits: types.Type) -> Any:
    return types.float32(types.int32), lambda context, builder, signature, given: builder.bitcast(given[0], ir.FloatType())


@intrinsic
def _zeros_below(_: Any, word: types.Type) -> Any:
    """How many bits of a word are 0 before the first that is 1."""
    return types.uint64(types.uint64), lambda context, builder, signature, given: builder.cttz(given[0], ir.Constant(ir.IntType(1), 1))


@loop()
def _order(bits):
    """An integer that is larger where the number is larger, negative ones too."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@loop(fastmath=SUMS)
def _rounded(x, shift, along_with, out, norm, lost, along, low, high):
    for row in range(low, high):
        squares, losses, products = np.float32(0), np.float32(0), np.float32(0)
        for d in range(x.shape[1]):
            value = x[row, d] - shift[d]
            bits = _bits(value)
            even = np.int32(np.int32(bits >> np.int32(16)) & np.int32(1))
            half = np.int32(np.int32(bits + np.int32(0x7FFF) + even) >> np.int32(16))
            out[row, d] = np.int16(half)
            off = value - _number(np.int32(half << np.int32(16)))
            squares += value * value
            losses += off * off
            products += value * along_with[d]
        norm[row], lost[row], along[row] = np.sqrt(squares), np.sqrt(losses), products


@loop(parallel=True)
def rounded(edges, x, shift, along_with, out, norm, lost, along):
    """Rows of x (N, D) less `shift` (D,) in bfloat16 (bits, to the nearest, ties to even), their norms, those of what rounding takes away,
    and their inner products with `along_with` (D,)."""
    for part in prange(len(edges) - 1):
        _rounded(x, shift, along_with, out, norm, lost, along, edges[part], edges[part + 1])


@loop()
def _count(keys, edge):
    total, low = np.int32(0), 0
    while low < len(keys):
        some, number = keys[low : low + _COUNTED], np.int16(0)
        for m in range(len(some)):
            number = np.int16(number + np.int16(some[m] >= edge))
        total += np.int32(number)
        low += _COUNTED
    return total


@loop()
def edge(keys, k, most, guess):
    """A positive key that at least k and at most `most` keys reach, or as few as can be; 0 where fewer than k are positive."""
    below, above, step, at = np.int32(0), np.int32(32767), np.int32(16), guess
    while above - below > 1:
        at = max(below + np.int32(1), min(at, above - np.int32(1)))
        number = _count(keys, np.int16(at))
        if number >= k:
            below = at
            if number <= most:
                break
            at = at + step if above == 32767 else (below + above) >> np.int32(1)
        else:
            above = at
            at = at - step if below == 0 else (below + above) >> np.int32(1)
        step *= np.int32(2)
    return below


@loop()
def _reaching(keys, least, mask, words, some, place, at, end):
    """Writes the places whose key is that of `least` or of more, from `at` on and before `end`; where they would end. `words` are those of
    `mask`, and `some` has room for as many."""
    bits = _bits(least)
    if bits < 0:
        bits = np.int32(bits + np.int32(0xFFFF))  # away from 0
    lowest = np.int16(_order(bits) >> np.int32(16))
    for m in range(len(keys)):
        key = keys[m]
        mask[m] = np.uint8(np.int16(key ^ np.int16(np.int16(key >> np.int16(15)) & _MAGNITUDE)) >= lowest)
    number = 0
    for j in range(len(words)):  # few are not 0: a branch for each would be guessed wrong
        some[number] = j
        number += words[j] != 0
    for i in range(number):
        word = words[some[i]]
        while word != 0:
            if at < end:
                place[at] = 8 * some[i] + (np.int64(_zeros_below(word)) >> 3)
            at += 1
            word &= word - np.uint64(1)
    return at


@loop()
def _candidates(rough, share, off, k, signed, guess, floor, room, place, count, low, high):
    latents, at = rough.shape[1], low * room
    keys, words = np.empty(latents, np.int16), np.zeros((latents + 7) // 8, np.uint64)
    mask, some = words.view(np.uint8), np.empty(len(words) + 1, np.int32)
    for row in range(low, high):
        count[row] = -1
        exponent = np.int16(0)
        for m in range(latents):
            keys[m] = rough[row, m]
            exponent = max(exponent, np.int16(keys[m] & _INFINITE))
        if exponent == _INFINITE or not off[row] < np.inf:
            continue
        least = floor
        if k:
            kth = edge(keys, k, k + k // 8, guess)
            if kth:
                least = _number(np.int32(kth << np.int32(16))) * (np.float32(1) - share) - off[row]
            elif signed:
                continue
        least -= off[row]
        least /= np.float32(1) + share if least > 0 else np.float32(1) - share
        after = _reaching(keys, least, mask, words, some, place, at, high * room)
        if after <= high * room:
            count[row], at = after - at, after


@loop(parallel=True)
def candidates(edges, rough, share, off, k, signed, guess, floor, room, place, count):
    """Latents of each row whose pre-activation may be among the k largest or, with k 0, reach `floor`, in order, and their number; -1 where
    that is not known, or there is no room. Of a row with fewer than k positive ones, those that may reach `floor`; not known if `signed`.
    The search for the k-th largest begins at `guess` in each row, so that what is found does not depend on the stretches.

    `rough` (B, M) has the upper halves of numbers that differ from the pre-activations by `share` of themselves and `off` (B,) at most.
    """
    for part in prange(len(edges) - 1):
        _candidates(rough, share, off, k, signed, guess, floor, room, place, count, edges[part], edges[part + 1])


@loop()
def _least_from(order, edge):
    least = np.int32(0x7FFFFFFF)
    for n in range(len(order)):
        least = min(least, order[n] if order[n] >= edge else np.int32(0x7FFFFFFF))
    return least


@loop()
def _kth(values, first, last, k, order):
    """The order of the k-th largest of some values; that of each is left in `order`."""
    least, most = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for n in range(last - first):
        one = _order(_bits(values[first + n]))
        order[n], least, most = one, min(least, one), max(most, one)
    while least < most:
        middle, number = np.int32(least + ((np.int64(most) - least + 1) >> 1)), np.int32(0)
        for n in range(last - first):
            number = np.int32(number + np.int32(order[n] >= middle))
        if number == k:
            return _least_from(order[: last - first], middle)
        if number >= k:
            least = middle
        else:
            most = middle - np.int32(1)
    return least


@loop()
def _largest(starts, index, values, longest, k, signed, place, value, count, low, high):
    order, at, floor = np.empty(longest, np.int32), low * k, np.int32(-0x80000000 if signed else 1)
    for row in range(low, high):
        first, last, before, room = starts[row], starts[row + 1], at, k
        kth = _kth(values, first, last, min(k, last - first), order)
        for n in range(last - first):
            room -= np.int64(order[n] > kth)
        for n in range(last - first):
            if order[n] < max(kth, floor) or (order[n] == kth and room == 0):
                continue
            room -= np.int64(order[n] == kth)
            place[at], value[at] = index[first + n], values[first + n]
            at += 1
        count[row] = at - before


@loop(parallel=True)
def largest(edges, starts, index, values, longest, k, signed, place, value, count):
    """The k largest of each row's pairs, of which it has `longest` at most, in order, the first of equal ones, and their number: of the
    positive ones unless `signed`. There is room for k of each row."""
    for part in prange(len(edges) - 1):
        _largest(starts, index, values, longest, k, signed, place, value, count, edges[part], edges[part + 1])


@loop()
def _positive(starts, index, values, room, place, value, count, low, high):
    at = low * room
    for row in range(low, high):
        before = at
        for n in range(starts[row], starts[row + 1]):
            if values[n] > 0:
                place[at], value[at] = index[n], values[n]
                at += 1
        count[row] = at - before


@loop(parallel=True)
def positive(edges, starts, index, values, room, place, value, count):
    """The pairs of each row whose values are positive, and their number. There is room for `room` of each row."""
    for part in prange(len(edges) - 1):
        _positive(starts, index, values, room, place, value, count, edges[part], edges[part + 1])
