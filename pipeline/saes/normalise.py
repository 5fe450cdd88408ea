"""The units in which an SAE is trained, and where b_dec begins in them: from the statistics of a store."""

import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import UserError
from pipeline.saes.units import Units
from pipeline.study.sae import Normalise

FLOOR = 1e-6
"""Directions whose variance is less than this share of the largest are whitened as if they had it: they hold rounding errors."""
ROUNDS, CLOSE = 1000, 1e-9
"""Of Weiszfeld's iteration: at most so many, until a step is this share of the mean distance."""


def units(store: ActivationStore, hook: str, how: Normalise, device: torch.device | str = "cpu") -> tuple[Units, float]:
    """Units for a hook, and its variance in them, summed over dimensions. Raises UserError when the hook is constant over the store, or the
    store lacks what whitening needs."""
    mean, variance, width = torch.from_numpy(store.mean(hook)), store.variance(hook), store[hook].shape[1]
    if not variance > 0:
        raise UserError(f"hook {hook} is constant over the train split: there is nothing to reconstruct")
    shift = (mean if how.centre else torch.zeros_like(mean)).float().to(device)
    if how.scale == "whiten":
        matrix, inverse, variance = _whitening(store, hook)
        return Units(shift, 1.0, matrix.float().to(device), inverse.float().to(device)), variance
    if how.scale == "none":
        return Units(shift), variance
    scale = (width / (variance if how.centre else store.mean_squared_norm(hook))) ** 0.5
    return Units(shift, scale), variance * scale**2


def _whitening(store: ActivationStore, hook: str) -> tuple[Tensor, Tensor, float]:
    """The symmetric matrix that makes all directions equally wide (ZCA), its inverse, and the sum of variances after it, float64."""
    try:
        covariance = torch.from_numpy(store.covariance(hook))
    except KeyError:
        raise UserError(
            f"normalise.scale: `whiten` takes the covariance of {hook}, and {store.artifact.folder} has none; give "
            f"`covariance: [{hook}]` in its activations"
        ) from None
    widths, directions = torch.linalg.eigh(covariance)
    held = widths.clamp_min(FLOOR * widths.max())
    return (directions * held.rsqrt()) @ directions.T, (directions * held.sqrt()) @ directions.T, (widths / held).sum().item()


def geometric_median(x_ND: Tensor) -> Tensor:
    """The point from which distances to all rows sum to the least (D,), by Weiszfeld's iteration in float64."""
    x = x_ND.double()
    found = x.mean(0)
    for _ in range(ROUNDS):
        distance_N = (x - found).norm(dim=1)
        if not distance_N.any():
            break
        weight_N = 1 / distance_N.clamp_min(torch.finfo(x.dtype).eps * distance_N.max())  # a row may lie at the point itself
        moved = (weight_N @ x) / weight_N.sum()
        step, found = (moved - found).norm(), moved
        if step <= CLOSE * distance_N.mean():
            break
    return found.float()
