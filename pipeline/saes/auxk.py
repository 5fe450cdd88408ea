"""AuxK: latents that have been silent for a window of tokens learn from what the others leave (Gao et al. 2024, appendix A.2).

The strongest of them, half as many as the width, reconstruct the error of the batch, without b_dec. Their error counts as a share of
the variance of what they are to reconstruct, so that its weight depends on no scale.
"""

import torch
from torch import Tensor

from pipeline.saes import kernels
from pipeline.saes.base import SAE, Step


def part(sae: SAE, centred_BD: Tensor, pre_BM: Tensor, error_BE: Tensor, at: Step) -> dict[str, Tensor]:
    """`{"auxk": loss}`; nothing while no latent is dead."""
    if not sae.spec.auxk or at.dead_M is None or not (dead := int(at.dead_M.sum())):
        return {}
    number = at.dead_M.nonzero().squeeze(1)
    strongest_BK = pre_BM.detach()[:, number].topk(min(dead, max(1, centred_BD.shape[1] // 2)), dim=1, sorted=False).indices
    active = kernels.Active.chosen(number[strongest_BK], len(at.dead_M))
    values_N = kernels.encode_at(centred_BD, sae.W_enc, sae.b_enc, pre_BM, active).relu()
    wanted_BE = -error_BE.detach()
    found = (kernels.decode_at(values_N, sae.W_dec, active) - wanted_BE).square().sum()
    rows = at.summed(torch.tensor(float(len(wanted_BE))))
    mean_E = at.summed(wanted_BE.sum(0)) / rows
    variance = at.summed((wanted_BE - mean_E).square().sum()) / rows
    return {"auxk": (found / len(wanted_BE) / variance.clamp_min(torch.finfo(variance.dtype).tiny)).nan_to_num(0.0)}
