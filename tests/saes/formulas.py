"""Each architecture's training loss as its paper writes it, dense, for autograd; what a loss of ours is compared with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.saes.base import SAE

VARIANCE = 5.0
"""Of what is predicted, as a training step is told."""

RELU = {"architecture": "relu", "l1": 0.3}
SHIFTED = {"architecture": "shifted-relu", "l1": 0.2}
TOPK = {"architecture": "topk", "k": 3}
BATCHTOPK = {"architecture": "batchtopk", "k": 3}
MATRYOSHKA = {"architecture": "matryoshka", "k": 3, "prefixes": [0.1, 0.4, 1]}
JUMPRELU = {"architecture": "jumprelu", "l0": 2.0, "bandwidth": 0.9, "threshold": 0.3}
TARGET = {**JUMPRELU, "target_l0": 4}
GATED = {"architecture": "gated", "l1": 0.3}
ALL = [RELU, SHIFTED, TOPK, BATCHTOPK, MATRYOSHKA, JUMPRELU, TARGET, GATED]

SHARES = [(20, 0.0), (400, -12.0), (400, -100.0)]
"""Latents and bias such that many are active, a few, and none: each is multiplied in its own way."""


def names(specs: list[dict[str, Any]]) -> list[str]:
    """Names of parametrised tests."""
    return [" ".join(f"{value}" for value in spec.values()) for spec in specs]


def loss(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and latents (B, M). Thresholds that are learned by a straight-through estimate get no gradient here."""
    formula: dict[str, Callable] = {
        "relu": _relu, "shifted-relu": _relu, "topk": _topk, "batchtopk": _batchtopk, "matryoshka": _matryoshka, "jumprelu": _jumprelu,
        "gated": _gated,
    }  # fmt: skip
    return formula[sae.spec.architecture](sae, x, y)


def given(sae: SAE, x: Tensor) -> Tensor:
    return x - sae.b_dec if sae.spec.subtract_b_dec else x


def decoded(sae: SAE, f: Tensor, x: Tensor) -> Tensor:
    found = f @ sae.W_dec + sae.b_dec
    return found if sae.W_skip is None else found + x @ sae.W_skip.T


def share(found: Tensor, y: Tensor) -> Tensor:
    return (found - y).square().sum(1).mean() / VARIANCE


def _relu(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    f = (given(sae, x) @ sae.W_enc + sae.b_enc).relu()
    weighted = f * sae.W_dec.norm(dim=1) if sae.spec.penalty == "decoder-norm" else f
    l1 = sae.spec.l1 * weighted.sum(1).mean()
    if sae.spec.error == "element":
        return (decoded(sae, f, x) - y).square().mean() + l1, f
    return share(decoded(sae, f, x), y) + l1 / VARIANCE**0.5, f


def _topk(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    pre = given(sae, x) @ sae.W_enc + sae.b_enc
    kth = pre.detach().sort(1, descending=True).values[:, sae.spec.k - 1 : sae.spec.k]
    f = pre * (pre >= kth) if sae.spec.signed else (pre * (pre >= kth)).relu()
    return share(decoded(sae, f, x), y), f


def survivors(sae: SAE, x: Tensor) -> Tensor:
    pre = given(sae, x) @ sae.W_enc + sae.b_enc
    edge = pre.detach().relu().flatten().sort(descending=True).values[len(x) * sae.spec.k - 1]
    return pre.relu() * (pre >= edge)


def _batchtopk(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    f = survivors(sae, x)
    return share(decoded(sae, f, x), y), f


def _matryoshka(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    f = survivors(sae, x)
    first = torch.arange(f.shape[1])
    sizes = [round(size * f.shape[1]) for size in sae.spec.prefixes]
    return sum(share(decoded(sae, f * (first < size), x), y) for size in sizes) / len(sizes), f


def _jumprelu(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    pre = given(sae, x) @ sae.W_enc + sae.b_enc
    f = pre * (pre > sae.threshold).detach()
    l0 = (pre > sae.threshold).sum(1).to(x.dtype).mean()
    penalty = sae.spec.l0 * l0
    if sae.spec.target_l0:
        off = l0.item() / sae.spec.target_l0 - 1
        square = off**2 if abs(off) <= 0.5 else abs(off) - 0.25
        penalty = sae.spec.l0 * sae.spec.target_l0 * off + square
    return share(decoded(sae, f, x), y) + penalty, f


def _gated(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    gate = given(sae, x) @ sae.W_enc + sae.b_gate
    magnitude = given(sae, x) @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag
    f = (gate > 0) * magnitude.relu()
    frozen = gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach()
    if sae.W_skip is not None:
        frozen = frozen + x @ sae.W_skip.detach().T
    l1 = sae.spec.l1 * gate.relu().sum(1).mean() / VARIANCE**0.5
    return share(decoded(sae, f, x), y) + l1 + share(frozen, y), f
