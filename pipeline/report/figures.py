"""The report's figures. Equal numbers give equal bytes: SVG without dates, ids from a fixed salt."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pipeline.report import sae_figures
from pipeline.report.drawing import legend, looks, plain_log
from pipeline.report.models import compared, held_out, mean
from pipeline.report.results import Model, Results, Trained
from pipeline.report.saes import place
from pipeline.study.names import without_seed

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "saeflow",
    "figure.figsize": (8.4, 3.0),
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#8a9099",
    "axes.labelcolor": "#30363d",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Drawn:
    """A figure: SVG, and what it is of."""

    svg: bytes
    of: str


def figures(results: Results, entries: dict[str, dict[str, str]]) -> dict[str, Drawn]:
    """Every figure of the report, by file name. `entries` names the entry of each variant of a model, and of activations."""
    drawn = {}
    with plt.rc_context(STYLE):
        for name, of, draw in _plan(results, entries):
            figure = draw()
            out = io.BytesIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)
            drawn[name] = Drawn(out.getvalue(), of)
    return drawn


def _plan(results: Results, entries: dict[str, dict[str, str]]) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
    families: dict[str, list[Model]] = {}
    for model in results.models:
        if model.curve is not None:
            families.setdefault(entries["models"][model.name], []).append(model)
    for family, models in families.items():
        yield f"model_{family}.svg", family, lambda models=models: _model_curves(models)  # type: ignore[misc]
    groups = compared(results)
    if len(groups) > 1:
        yield "tradeoff.svg", "all language models", lambda: _tradeoff(groups)
    if results.saes:
        yield "frontier.svg", "all SAEs", lambda: sae_figures.frontier(results, entries)
    places: dict[tuple[str, str], list[Trained]] = {}
    for sae in results.saes:
        places.setdefault((entries["activations"][sae.activations], sae.hook), []).append(sae)
    for (activations, hook), saes in places.items():
        at = place(activations, hook)
        yield f"training_{activations}_{hook}.svg", at, lambda saes=saes: sae_figures.curves(saes)  # type: ignore[misc]
        yield f"density_{activations}_{hook}.svg", at, lambda saes=saes: sae_figures.densities(saes)  # type: ignore[misc]


def _model_curves(models: list[Model]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(2, 1))
    shown = looks(without_seed(model.name) for model in models)
    for model in models:
        assert model.curve is not None
        curve, name = model.curve.to_pydict(), without_seed(model.name)
        if "validation_loss" in curve:
            left.plot(curve["step"], curve["validation_loss"], label=name, **shown[name].line())
        left.plot(curve["step"], curve["train_loss"], **shown[name].line(faint=True), label=name)
        right.plot(curve["step"], curve["lr"], **shown[name].line())
    left.set(xlabel="step", ylabel="loss", yscale="log", title="validation (bold) and training loss")
    right.set(xlabel="step", title="learning rate")
    plain_log(left.yaxis)
    legend(figure, left)
    return figure


def _tradeoff(groups: dict[str, list[Model]]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True)
    shown = looks(groups)
    for name, found in groups.items():
        perplexity = [held_out(model)["perplexity"] for model in found]
        for axis, what in zip(axes, ("polysemanticity", "sparsity"), strict=True):
            axis.scatter(perplexity, [mean(model, what) for model in found], s=30, label=name, zorder=3, **shown[name].point())
    axes[0].set(xlabel="validation perplexity (log)", xscale="log", title="polysemanticity, nats (less is purer)")
    axes[1].set(xlabel="validation perplexity (log)", title="share of silent units", ylim=(-0.02, 1.02))
    plain_log(axes[0].xaxis)
    legend(figure, axes[0], below=True)
    return figure
