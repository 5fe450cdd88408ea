"""What the model loses when an SAE's reconstruction flows on in place of a hook's output."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.console import progress
from pipeline.evaluation.measured import Measured
from pipeline.models.base import Network
from pipeline.models.examples import Examples
from pipeline.models.hooks import spliced

Replace = Callable[[Tensor], Tensor]
"""What flows on in place of rows (n, D) of a hook."""


@torch.no_grad()
def losses(
    model: Network, split: Examples, hook: str, reconstruct: Replace, mean_D: Tensor, size: int, measured: Measured
) -> dict[str, float | None]:
    """Loss per position of the model as it is, with the SAE spliced in, and with the hook set to zero and to its mean.

    The hook is replaced at the measured positions alone; at others (left out of the store, or flagged) its output flows on as it is, so
    that the score is of the rows that the other metrics are of. Scored are all `positions` of the sequences that have such rows: what is
    replaced at one changes the losses after it. Each loss is averaged over them first; then loss_score_zero = (zero - sae) /
    (zero - clean), and the same with the mean. 1: nothing is lost; 0: as bad as ablation. For a language model this is the CE loss score.
    `size` sequences go through the model at a time. Of a model without a loss, such as an encoder, all are None.
    """
    ways: dict[str, Replace] = {
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
    with progress("splice", min(len(split), measured.sequences), "sequences") as bar:
        for batch in split.batches(size):
            some = range(batch.sequences.start, min(batch.sequences.stop, measured.sequences))
            if not some:
                break
            inputs, targets = batch.inputs[: len(some)], batch.targets[: len(some)]
            at = measured.at(some, targets.numel() // len(some))
            for way, replace in ways.items():
                output = spliced(model, inputs, hook, _only(at, replace))
                sums[way] += model.losses(output, targets).double().sum().item()
            count += targets.numel()
            bar.advance(len(some))
    mean = {way: total / count for way, total in sums.items()}
    return {
        "positions": count,
        **{f"loss_{way}": value for way, value in mean.items()},
        **{f"loss_score_{way}": _score(mean["clean"], mean["sae"], mean[way]) for way in ("zero", "mean")},
    }


def _only(at: Tensor, replace: Replace) -> Replace:
    """What a hook's output becomes when it is replaced at some of its positions (B, T)."""
    if not at.any():
        return lambda x: x

    def replaced(x: Tensor) -> Tensor:
        some = at.view(x.shape[:-1]).to(x.device)
        found = x.clone()
        found[some] = replace(x[some]).to(x)
        return found

    return replaced


def _score(clean: float, sae: float, ablated: float) -> float | None:
    return (ablated - sae) / (ablated - clean) if ablated != clean else None
