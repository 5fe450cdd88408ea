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
    for name, models in compared(results).items():
        found = {what: spread([mean(model, what) for model in models], _show(what)) for what in QUANTITIES}
        ratio = [_last(model, "objectives_ratio") for model in models]
        perplexity = spread([held_out(model)["perplexity"] for model in models])
        measured = {"name": name, "runs": len(models), "perplexity": perplexity, "ratio": spread(ratio, percent)}
        lines.append({**measured, **found, "pool": _pool(_units(models[0]))})
    return lines


def _pool(units: dict[str, Any]) -> str:
    """How a model's units were measured, in words."""
    silent, tokens = units["hooks"]
    below = units["inactive_below"]
    when = f"|a| < {below:g}" if below else "a = 0"
    return f"{plain(units['tokens'])} tokens of {plain(units['types'])} types; silent: {silent} with {when}; polysemanticity: {tokens}"


def blocks(results: Results) -> list[dict[str, Any]]:
    """The same block by block, of each model."""
    return [
        {"name": name, "quantity": what, "values": [spread(list(values), _show(what)) for values in zip(*by_model, strict=True)]}
        for name, models in compared(results).items()
        for what in QUANTITIES
        if (by_model := [_units(model)[what] for model in models])
    ]


def samples(results: Results) -> list[dict[str, Any]]:
    """Texts that models went on with; of several seeds the first."""
    first = [models[0] for models in results.model_groups().values()]
    return [{"name": model.name, **model.sample.read_json("sample.json")} for model in first if model.sample]


def compared(results: Results) -> dict[str, list[Model]]:
    """Models whose units were measured, by what they have in common."""
    return {name: models for name, models in results.model_groups().items() if all(model.units for model in models)}


def held_out(model: Model) -> dict[str, float]:
    """Losses on the validation split, or on train where there is none."""
    return model.metrics.get("validation", model.metrics["train"])


def mean(model: Model, what: str) -> float:
    """Mean over blocks of a quantity of a model's units."""
    values = _units(model)[what]
    return sum(values) / len(values)


def _units(model: Model) -> dict[str, Any]:
    assert model.units is not None
    return model.units


def _show(what: str) -> Any:
    return plain if what == "polysemanticity" else percent


def _last(model: Model, column: str) -> float | None:
    """The last number of a column of the curve; None where it has none."""
    return model.curve[column][-1].as_py() if model.curve is not None and column in model.curve.column_names else None
