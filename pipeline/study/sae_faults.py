"""What an SAE asks of the activations it is trained on (hooks, their order, splits, statistics), and settings of it that change nothing."""

from collections.abc import Iterable, Iterator

from pipeline.study.activations import Activations
from pipeline.study.faults import Fault, not_among
from pipeline.study.model import Model
from pipeline.study.sae import SAE


def sae_faults(entry: str, sae: SAE, recorded: Activations, models: Iterable[Model]) -> Iterator[Fault]:
    """What is wrong with a variant of an entry of `saes` on these activations, whose model has these variants."""
    hooks, outputs = sae.hooks or [], sae.outputs or []
    for key, named in (("hooks", hooks), ("outputs", outputs)):
        for position, hook in enumerate(named):
            if hook not in recorded.hooks:
                yield Fault(("saes", entry, key, position), not_among(hook, recorded.hooks, f"a hook of activations.{sae.activations}"))
    orders = [_order(model) for model in models]
    for position, (hook, output) in enumerate(zip(hooks, outputs, strict=bool(outputs))):
        if output == hook:
            told = f"'{output}' is the hook that is read; leave `outputs` out for an SAE of it"
            yield Fault(("saes", entry, "outputs", position), told)
        elif any(hook in order and output in order and order.index(output) < order.index(hook) for order in orders):
            told = f"'{output}' comes before '{hook}' in the model; a transcoder predicts a hook that comes after the one it reads"
            yield Fault(("saes", entry, "outputs", position), told)
    if problem := sae.lacks(list(recorded.splits)):
        setting, _, told = problem.partition(": ")
        yield Fault(("saes", entry, *setting.split(".")), told)
    if sae.normalise.scale == "whiten":
        read = dict.fromkeys([*(hooks or recorded.hooks), *outputs])
        if lacking := [hook for hook in read if hook in recorded.hooks and hook not in recorded.covariance]:
            told = f"'whiten' takes the covariance of {', '.join(lacking)}; add it to `covariance` of activations.{sae.activations}"
            yield Fault(("saes", entry, "normalise", "scale"), told)


def idle_faults(entry: str, variants: Iterable[SAE]) -> Iterator[Fault]:
    """Settings that change nothing in any variant of an entry: of a sweep, some may well not need what all are given."""
    first, *others = [sae.idle() for sae in variants] or [{}]
    for setting, told in first.items():
        if all(setting in other for other in others):
            yield Fault(("saes", entry, *setting.split(".")), told)


def _order(model: Model) -> list[str]:
    """Hooks as the forward passes them, where that is known: modules of a user's own stand last, and their width is not known."""
    return [hook for hook, width in (model.hooks() or {}).items() if width]
