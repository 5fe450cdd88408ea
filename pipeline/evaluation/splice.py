"""What the model loses when an SAE's reconstruction flows on in place of a hook's output."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.console import progress
from pipeline.models.base import Network
from pipeline.models.examples import Examples
from pipeline.models.hooks import spliced


@torch.no_grad()
def losses(
    model: Network, split: Examples, hook: str, reconstruct: Callable[[Tensor], Tensor], mean_D: Tensor, size: int, sequences: int
) -> dict[str, float | None]:
    """Loss per position of the model as it is, with the SAE spliced in, and with the hook set to zero and to its mean.

    Each is averaged over all scored positions first; then loss_score_zero = (zero - sae) / (zero - clean), and the same
    with the mean. 1: nothing is lost; 0: as bad as ablation. For a language model this is the CE loss score. `size`
    sequences go through the model at a time; the first `sequences` of the split are scored. Of a model without a loss, such as
    an encoder, all are None.
    """
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "clean": lambda x: x,
        "sae": reconstruct,
        "zero": torch.zeros_like,
        "mean": lambda x: mean_D.to(x).expand_as(x),
    }
    if not model.scored:
        names = [*(f"loss_{way}" for way in ways), "loss_score_zero", "loss_score_mean"]
        return {"positions": 0, **dict.fromkeys(names)}
    sums = dict.fromkeys(ways, 0.0)
    count = 0
    with progress("splice", min(len(split), sequences), "sequences") as bar:
        for batch in split.batches(size):
            if (left := sequences - batch.sequences.start) <= 0:
                break
            inputs, targets = batch.inputs[:left], batch.targets[:left]
            for way, replace in ways.items():
                output = spliced(model, inputs, hook, replace)
                sums[way] += model.losses(output, targets).double().sum().item()
            count += targets.numel()
            bar.advance(len(inputs))
    mean = {way: total / count for way, total in sums.items()}
    return {
        "positions": count,
        **{f"loss_{way}": value for way, value in mean.items()},
        **{f"loss_score_{way}": _score(mean["clean"], mean["sae"], mean[way]) for way in ("zero", "mean")},
    }


def _score(clean: float, sae: float, ablated: float) -> float | None:
    return (ablated - sae) / (ablated - clean) if ablated != clean else None
