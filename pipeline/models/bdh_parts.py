"""What the two forwards of BDH are made of: the pieces in which they compute, rotation, dropout, and the product of each.

Both forwards, the one that taps see into (bdh_tapped.py) and the one made for speed (bdh_fused.py), call these with the same
shapes in the same order, so that they agree bit for bit.
Shapes: B sequences, T tokens, D width, H heads, N neurons of a head, M = H N; of a piece: R sequences, C tokens, P = R C rows.
"""

from dataclasses import dataclass
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 1024
"""Rows of a piece, about: a head's neurons of so many stay near the last cache (32 MiB at the default size)."""
BLOCK = 64
"""Rows of scores at a time; what lies right of the diagonal's block is not computed."""
BASE = 2.0**16
"""Longest wavelength of the rotation, in tokens over 2 pi."""


class Weights(NamedTuple):
    """What all levels share: encoder and encoder_v (H, D, N), decoder (H, N, D)."""

    encoder: Tensor
    encoder_v: Tensor
    decoder: Tensor

    def to(self, dtype: torch.dtype) -> "Weights":
        return Weights(*(one.to(dtype) for one in self))


def frequencies(neurons: int) -> Tensor:
    """Turns per token of each neuron of a head (N,), float32; neighbours in pairs share one."""
    pair = torch.arange(neurons, dtype=torch.float64) // 2
    return (BASE ** (-2 * pair / neurons) / (2 * pi)).float()


class Rotation:
    """cos + i sin of the angle of each pair of neurons at each position: complex (C, N/2).

    Phases are taken in float64, and whole turns dropped from them, before anything is rounded: in float32 a phase of 10^6 turns
    is known to a sixteenth of a turn.
    """

    def __init__(self, frequencies_N: Tensor, length: int, dtype: torch.dtype) -> None:
        """`length` is the longest stretch asked for at once, `dtype` the real type in which is rotated."""
        self.turns, self.dtype = frequencies_N[::2].double(), dtype
        self.table = self._rotors(0, length)
        self.starts: dict[int, Tensor] = {}

    def _rotors(self, start: int, length: int) -> Tensor:
        at = torch.arange(start, start + length, dtype=torch.float64, device=self.turns.device)
        angle = (2 * pi * torch.outer(at, self.turns).frac_()).to(self.dtype)
        return torch.complex(angle.cos(), angle.sin())

    def at(self, start: int, length: int) -> Tensor:
        """Rotors of the positions from `start` on: rotors of the distance from it, times its own."""
        if not start:
            return self.table[:length]
        if start not in self.starts:
            self.starts[start] = self._rotors(start, 1)
        return self.table[:length] * self.starts[start]


def rotated(x: Tensor, rotor: Tensor, out: Tensor | None = None) -> Tensor:
    """x (R, C, N) with each pair of neighbours (a, b) turned as a + ib times its rotor (C, N/2); in x's type."""
    pairs = torch.view_as_complex(x.to(rotor.real.dtype).unflatten(-1, (-1, 2)))
    if out is None or out.dtype != rotor.real.dtype:
        return torch.view_as_real(pairs * rotor).flatten(-2).to(x.dtype)
    torch.mul(pairs, rotor, out=torch.view_as_complex(out.unflatten(-1, (-1, 2))))
    return out


class Dropout:
    """Which neurons a training step drops.

    Seeds come from the global generator, one for each piece; the mask itself is drawn from its seed each time it is needed
    (forward and backward), so that it need not be kept. Sixteen bits decide on a neuron: the rate is rounded to 1/65536.
    """

    def __init__(self, rate: float, shape: tuple[int, ...]) -> None:
        """`shape`: pieces along each of the axes that `kept` is asked by."""
        self.drops = min(round(rate * 65536), 65535)
        self.scale = 65536 / (65536 - self.drops)
        self.seeds = torch.randint(2**63 - 1, shape)

    def kept(self, piece: tuple[int, ...], like: Tensor, out: Tensor | None = None) -> Tensor:
        """1 where the piece keeps a neuron, 0 where it drops it, as a tensor like `like`."""
        generator = torch.Generator(like.device).manual_seed(int(self.seeds[piece]))
        words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
        draws = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()].view_as(like)
        return torch.ge(draws, self.drops - 32768, out=torch.empty_like(like) if out is None else out)


@dataclass(frozen=True)
class Plan:
    """How one forward is cut into pieces and computed."""

    levels: int
    heads: int
    context: int
    dtype: torch.dtype
    """Of the products; norms, sums and the stream are the weights' own."""
    rotation: Rotation
    dropout: Dropout | None

    @property
    def scale(self) -> float:
        """What makes up for the neurons that are dropped."""
        return self.dropout.scale if self.dropout else 1.0

    def spans(self, length: int) -> list[slice]:
        """Chunks of a text."""
        return spans(length, self.context)


def spans(length: int, size: int) -> list[slice]:
    """Stretches of at most `size` that cover `length`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def groups(batch: int, length: int, context: int) -> list[slice]:
    """Sequences that are computed together; nothing depends on the others of a group."""
    return spans(batch, max(1, ROWS // max(1, min(length, context))))


def piece_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, never a view: where a matrix lies in memory may change the last bits of its products."""
    return x.to(dtype, copy=True, memory_format=torch.contiguous_format)


def normed(x: Tensor) -> Tensor:
    """Zero mean and unit variance along the last axis, without weights."""
    return F.layer_norm(x, x.shape[-1:])


def fired(x: Tensor, encoder_DN: Tensor, out: Tensor | None = None) -> Tensor:
    """A head's neurons (P, N) for x (P, D)."""
    return torch.mm(x, encoder_DN, out=out).relu_()


def scores(q_RCN: Tensor) -> Tensor:
    """Products of each row with the rows before it (R, C, C); zero from the diagonal on."""
    rows = q_RCN.shape[1]
    found = q_RCN.new_zeros(len(q_RCN), rows, rows)
    for some in spans(rows, BLOCK):
        found[:, some, : some.stop] = torch.bmm(q_RCN[:, some], q_RCN[:, : some.stop].mT)
    return found.tril_(-1)


def attended(q_RCN: Tensor, v_RCD: Tensor, scores_RCC: Tensor, memory_RND: Tensor | None) -> Tensor:
    """What linear attention reads (P, D): from the rows before each in its own chunk, and from the memory of earlier chunks."""
    read = torch.bmm(scores_RCC, v_RCD).to(torch.promote_types(v_RCD.dtype, torch.float32))
    if memory_RND is not None:
        read = read + torch.bmm(q_RCN, memory_RND.to(q_RCN.dtype))
    return read.flatten(0, 1)


def written(q_RCN: Tensor, v_RCD: Tensor, memory_RND: Tensor | None) -> Tensor:
    """The memory after a chunk: the sum over rows so far of q (outer product) v, (R, N, D); the same tensor without autograd."""
    if memory_RND is None:
        return torch.bmm(q_RCN.mT, v_RCD).to(torch.promote_types(v_RCD.dtype, torch.float32))
    if memory_RND.dtype != q_RCN.dtype:
        return memory_RND + torch.bmm(q_RCN.mT, v_RCD)
    if torch.is_grad_enabled():
        return torch.baddbmm(memory_RND, q_RCN.mT, v_RCD)
    return memory_RND.baddbmm_(q_RCN.mT, v_RCD)
