"""Dead latents get directions of rows that are reconstructed badly (Bricken et al. 2023, "Towards Monosemanticity", on resampling).

- a row is drawn with a probability that goes with the square of its loss, and none twice, nor one that equals it, so that no two latents
  are given the same
- the decoder's row is the row's direction from the mean of all, of norm 1; the encoder's the same direction, a fifth as long as those of
  live latents are on average; thresholds are those of the start times the row's norm, and other settings of the latent (biases, gates)
  are those of the start, but that the bias takes off what the mean gives: a latent does not fire for what all rows have in common. (From
  b_dec, as in the paper, it would, wherever b_dec is not the mean, and all new latents would be the same)
- what all latents share (b_dec, a skip map) is left alone
"""

import torch
from torch import Tensor

from pipeline.saes.base import SAE

ENCODER_NORM = 0.2
"""Of a new encoder row, as a share of the mean norm of live ones."""
BATCH = 1024
_SHARED = ("b_dec", "W_skip")


def own(sae: SAE) -> list[str]:
    """The parameters that latents have for themselves, which lie in memory by latent."""
    return [name for name, _ in sae.named_parameters() if name not in _SHARED]


@torch.no_grad()
def resample(sae: SAE, dead_M: Tensor, x_ND: Tensor, y_NE: Tensor, seed: int) -> Tensor:
    """Gives dead latents new directions, from rows and what is predicted from them, in units of training. Returns which were changed: as
    many as there are distinct rows that are not perfect."""
    loss_N = torch.cat([(sae(x) - y).square().sum(1) for x, y in zip(x_ND.split(BATCH), y_NE.split(BATCH), strict=True)]).double().cpu()
    chance_N = (loss_N / loss_N.max().clamp_min(torch.finfo(loss_N.dtype).tiny)).square()
    which_N = _distinct(x_ND if sae.spec.outputs is None else torch.cat([x_ND, y_NE], 1))
    chance_N = torch.zeros_like(chance_N).index_add(0, which_N, chance_N)
    dead = dead_M.nonzero().squeeze(1)
    dead = dead[: int((chance_N > 0).sum())]
    if not len(dead):
        return dead
    rows = torch.multinomial(chance_N, len(dead), generator=torch.Generator().manual_seed(seed)).to(x_ND.device)
    mean_D = x_ND.mean(0)
    out, into = _unit(y_NE[rows] - y_NE.mean(0)), _unit(x_ND[rows] - mean_D)
    live_M = ~dead_M if not dead_M.all() else dead_M
    norm = ENCODER_NORM * sae.W_enc.norm(dim=0)[live_M].mean().item()
    sae.W_dec[dead] = out
    sae.W_enc[:, dead] = norm * into.T
    sae.restart(dead, norm)
    sae.shift_pre(mean_D.new_zeros(len(sae.W_dec)).index_copy(0, dead, -(sae.centred(mean_D) @ sae.W_enc[:, dead])))
    return dead


def _distinct(x_ND: Tensor) -> Tensor:
    """For each row the number of one that stands for all that equal it (N,)."""
    _, group_N = x_ND.cpu().unique(dim=0, return_inverse=True)
    number_N = torch.arange(len(x_ND))
    return number_N.index_copy(0, group_N, number_N)[group_N]


def _unit(x_ND: Tensor) -> Tensor:
    return x_ND / x_ND.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x_ND.dtype).tiny)
