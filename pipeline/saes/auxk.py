"""AuxK: latents that have been silent for a window of tokens learn from what the others leave (Gao et al. 2024, appendix A.2).

The strongest of them, half as many as the width, reconstruct the error of the batch, without b_dec. Their error counts as a share of
the variance of what they are to reconstruct, so that its weight depends on no scale.
"""

import torch
from torch import Tensor

from pipeline.saes import latents
from pipeline.saes.base import SAE, Step


def part(sae: SAE, centred_BD: Tensor, error_BE: Tensor, at: Step) -> dict[str, Tensor]:
    """`{"auxk": loss}`; nothing while no latent is dead.

    `error_BE` is the reconstruction less what it is to be. Gradients reach the dead latents that are chosen, and nothing else.
    """
    if not sae.spec.auxk or at.dead_M is None or not (dead := int(at.dead_M.sum())):
        return {}
    number, centred_BD = at.dead_M.nonzero().squeeze(1), centred_BD.detach()
    # of the dead alone: products with all others' weights would be zeros
    W_enc, b_enc, W_dec = sae.W_enc.T.index_select(0, number).T, sae.b_enc.index_select(0, number), sae.W_dec.index_select(0, number)
    f = latents.largest(centred_BD, W_enc, b_enc, min(dead, max(1, centred_BD.shape[1] // 2)))
    wanted_BE = -error_BE.detach()
    (found,), _ = f.errors(W_dec, torch.zeros_like(sae.b_dec), wanted_BE)
    rows = at.summed(torch.tensor(float(len(wanted_BE)), device=wanted_BE.device))
    mean_E = at.summed(wanted_BE.sum(0)) / rows
    variance = at.summed((wanted_BE - mean_E).square().sum()) / rows
    none = variance == 0
    return {"auxk": torch.where(none, 0.0, found / len(wanted_BE) / torch.where(none, 1.0, variance))}
