"""What the model loses when what an SAE makes of one hook flows on in place of a hook's output."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.console import progress
from pipeline.evaluation.measured import Measured
from pipeline.models.base import Network
from pipeline.models.examples import Examples
from pipeline.models.hooks import Watching

Replace = Callable[[Tensor, Tensor], Tensor]
"""What flows on in place of rows y (n, E) of the hook that is replaced, where the hook that is read has rows x (n, D)."""


@torch.no_grad()
def losses(
    model: Network,
    split: Examples,
    hook: str,
    predict: Callable[[Tensor], Tensor],
    mean_E: Tensor,
    size: int,
    measured: Measured,
    output: str | None = None,
) -> dict[str, float | None]:
    """Loss per position of the model as it is, with the SAE spliced in, and with the hook set to zero and to its mean.

    `predict` takes rows (n, D) of `hook` and gives what flows on (n, E) in place of `hook` itself, or, of a transcoder, of another
    hook, `output`: in the same forward the one is read and the other replaced. It is replaced at the measured positions alone; at others
    (left out of the store, or flagged) its output flows on as it is, so that the score is of the rows that the other metrics are of.
    Scored are all `positions` of the sequences that have such rows: what is replaced at one changes the losses after it. Each loss is
    averaged over them first; then loss_score_zero = (zero - sae) / (zero - clean), and the same with the mean. 1: nothing is lost; 0: as
    bad as ablation. For a language model this is the CE loss score. `size` sequences go through the model at a time. Of a model without
    a loss, such as an encoder, all are None. Raises UserError when the forward comes to `output` before `hook`.
    """
    ways: dict[str, Replace] = {
        "clean": lambda x, y: y,
        "sae": lambda x, y: predict(x),
        "zero": lambda x, y: torch.zeros_like(y),
        "mean": lambda x, y: mean_E.to(y).expand_as(y),
    }
    if not model.scored:
        names = [*(f"loss_{way}" for way in ways), "loss_score_zero", "loss_score_mean"]
        return {"positions": 0, **dict.fromkeys(names)}
    device = next(model.parameters()).device
    sums = dict.fromkeys(ways, 0.0)
    count = 0
    with progress("splice", min(len(split), measured.sequences), "sequences") as bar:
        for batch in split.batches(size):
            some = range(batch.sequences.start, min(batch.sequences.stop, measured.sequences))
            if not some:
                break
            inputs, targets = batch.inputs[: len(some)].to(device), batch.targets[: len(some)].to(device)
            at = measured.at(some, targets.numel() // len(some)).to(device)
            for way, replace in ways.items():
                found = model(inputs, _spliced(hook, output or hook, at, replace))
                sums[way] += model.losses(found, targets).double().sum().item()
            count += targets.numel()
            bar.advance(len(some))
    mean = {way: total / count for way, total in sums.items()}
    return {
        "positions": count,
        **{f"loss_{way}": value for way, value in mean.items()},
        **{f"loss_score_{way}": _score(mean["clean"], mean["sae"], mean[way]) for way in ("zero", "mean")},
    }


def _spliced(hook: str, output: str, at: Tensor, replace: Replace) -> Watching:
    """A tap that reads `hook` and replaces `output`, at some positions (B, T)."""
    read: Tensor | None = None

    def see(name: str, value: Tensor) -> Tensor:
        nonlocal read
        if name == hook:
            read = value
        if name != output or not at.any():
            return value
        if read is None:
            raise UserError(f"the model comes to {output} before {hook}: a transcoder predicts a hook that comes after the one it reads")
        some = at.view(value.shape[:-1])
        found = value.clone()
        found[some] = replace(read[some], value[some]).to(value)
        return found

    return Watching({hook, output}, see)


def _score(clean: float, sae: float, ablated: float) -> float | None:
    return (ablated - sae) / (ablated - clean) if ablated != clean else None
