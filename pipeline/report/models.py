"""What the page says of models: losses, what hidden units do, texts they go on with. Of several seeds: mean and range."""

from typing import Any

from pipeline.report.numbers import percent, plain, spread
from pipeline.report.results import Model, Results
from pipeline.study.dataset import SPLITS

QUANTITIES = ("sparsity", "rare", "never", "polysemanticity")


def losses(results: Results) -> list[dict[str, Any]]:
    """Lines of the table of models: one per split."""
    lines = []
    for name, models in results.model_groups().items():
        for split in (split for split in SPLITS if split in models[0].metrics):
            found = [model.metrics[split] for model in models]
            lines.append(
                {
                    "name": name,
                    "parameters": models[0].artifact.facts["parameters"],
                    "split": split,
                    "loss": spread([one["loss"] for one in found]),
                    "perplexity": spread([one.get("perplexity") for one in found]),
                    "rounded": spread([one.get("rounded_accuracy") for one in found], percent),
                    "positions": found[0]["positions"],
                    "runs": len(models),
                    "first": split == "train",
                }
            )
    return lines


def units(results: Results) -> list[dict[str, Any]]:
    """Lines of the table of hidden units: means over blocks, beside the perplexity they cost."""
    lines = []
    for name, models in _with_units(results).items():
        found = {what: spread([mean(model, what) for model in models], _show(what)) for what in QUANTITIES}
        ratio = [_last(model, "objectives_ratio") for model in models]
        perplexity = spread([model.metrics.get("validation", model.metrics["train"])["perplexity"] for model in models])
        about = {key: _units(models[0])[key] for key in ("tokens", "types", "hooks", "inactive_below")}
        lines.append({"name": name, "runs": len(models), "perplexity": perplexity, "ratio": spread(ratio, percent), **found, **about})
    return lines


def blocks(results: Results) -> list[dict[str, Any]]:
    """The same block by block, of each model."""
    return [
        {"name": name, "quantity": what, "values": [spread(list(values), _show(what)) for values in zip(*by_model, strict=True)]}
        for name, models in _with_units(results).items()
        for what in QUANTITIES
        if (by_model := [_units(model)[what] for model in models])
    ]


def samples(results: Results) -> list[Model]:
    """Models that left a text; of several seeds the first."""
    return [models[0] for models in results.model_groups().values() if models[0].sample]


def mean(model: Model, what: str) -> float:
    """Mean over blocks of a quantity of a model's units."""
    values = _units(model)[what]
    return sum(values) / len(values)


def _units(model: Model) -> dict[str, Any]:
    assert model.units is not None
    return model.units


def _with_units(results: Results) -> dict[str, list[Model]]:
    return {name: models for name, models in results.model_groups().items() if all(model.units for model in models)}


def _show(what: str) -> Any:
    return plain if what == "polysemanticity" else percent


def _last(model: Model, column: str) -> float | None:
    """The last number of a column of the curve; None where it has none."""
    return model.curve[column][-1].as_py() if model.curve is not None and column in model.curve.column_names else None
