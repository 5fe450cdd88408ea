"""Against polysemantic units: the mean over units of the entropy of |activation| over token types, in nats.

- M_vj sums |a_tj| over the tokens t of type v; p_.j is M_.j as shares of its sum; H_j = -sum_v p_vj log p_vj
- types that are not in the batch have no share, so that only those present take memory
- the entropy does not change with a unit's scale, and grows with the number of tokens: compare runs of the same `tokens`
- a unit that is 0 at all tokens has entropy 0; at an activation of exactly 0 the gradient, infinite on both sides, is taken as 0
"""

import torch
from torch import Tensor

from pipeline.objectives import base
from pipeline.study.objectives.anti_polysemantic import AntiPolysemantic as Spec


class Objective(base.Objective[Spec]):
    def at_hook(self, hook: str, value_nD: Tensor, ids_n: Tensor) -> Tensor:
        types_V, type_n = ids_n.unique(return_inverse=True)
        empty_VD = value_nD.new_zeros(len(types_V), value_nD.shape[1])
        # An expanded index takes PyTorch's fast path; index_add is ten times slower on a processor.
        mass_VD = empty_VD.scatter_add(0, type_n[:, None].expand_as(value_nD), value_nD.abs())
        total_D = mass_VD.sum(0)
        share_VD = mass_VD / torch.where(total_D > 0, total_D, 1.0)
        log_VD = torch.where(share_VD > 0, share_VD, 1.0).log()
        return -(share_VD * log_VD).sum(0).mean()
