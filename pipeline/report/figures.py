"""The report's figures. Equal numbers give equal bytes: SVG without dates, ids from a fixed salt."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.report.models import compared, held_out, mean
from pipeline.report.results import Model, Results, Trained
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
    "axes.prop_cycle": cycler(color=["#0b6bcb", "#d4641c", "#1f8a4c", "#8e44ad", "#b58900", "#c0392b", "#0e8f9c", "#6b7280"]),
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
        yield "frontier.svg", "all SAEs", lambda: _frontier(results)
    places: dict[tuple[str, str], list[Trained]] = {}
    for sae in results.saes:
        places.setdefault((entries["activations"][sae.activations], sae.hook), []).append(sae)
    for (activations, hook), saes in places.items():
        yield f"training_{activations}_{hook}.svg", place(activations, hook), lambda saes=saes: _sae_curves(saes)  # type: ignore[misc]
        yield f"density_{activations}_{hook}.svg", place(activations, hook), lambda saes=saes: _densities(saes)  # type: ignore[misc]


def place(activations: str, hook: str) -> str:
    """How a page names a hook of some activations."""
    return hook if activations == hook else f"{hook} of {activations}"


def _plain_log(axis: Axis) -> None:
    """Ticks at 1, 2, 5 of each decade, written as plain numbers: most of our ranges are shorter than a decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _labelled(names: list[str]) -> Iterator[tuple[str, str, str | None]]:
    """Colour by name without seed; a label at the first of each."""
    colours: dict[str, str] = {}
    for name in names:
        shared = without_seed(name)
        new = shared not in colours
        colours.setdefault(shared, f"C{len(colours) % 8}")
        yield name, colours[shared], shared if new else None


def _legend(axes: Axes) -> None:
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)


def _model_curves(models: list[Model]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(2, 1))
    for model, (_, colour, label) in zip(models, _labelled([model.name for model in models]), strict=True):
        assert model.curve is not None
        curve = model.curve.to_pydict()
        alone = None if "validation_loss" in curve else label
        left.plot(curve["step"], curve["train_loss"], color=colour, alpha=0.45, linewidth=1.0, label=alone)
        if "validation_loss" in curve:
            left.plot(curve["step"], curve["validation_loss"], color=colour, label=label)
        right.plot(curve["step"], curve["lr"], color=colour)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="validation (bold) and training loss")
    right.set(xlabel="step", title="learning rate")
    _plain_log(left.yaxis)
    _legend(left)
    return figure


def _tradeoff(groups: dict[str, list[Model]]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True)
    for number, (name, found) in enumerate(groups.items()):
        perplexity = [held_out(model)["perplexity"] for model in found]
        for axis, what in zip(axes, ("polysemanticity", "sparsity"), strict=True):
            values = [mean(model, what) for model in found]
            marker = "osD^vPX*"[number // 8 % 8]
            axis.scatter(perplexity, values, s=30, color=f"C{number % 8}", marker=marker, label=name, zorder=3)
    axes[0].set(xlabel="validation perplexity (log)", xscale="log", title="polysemanticity, nats (less is purer)")
    axes[1].set(xlabel="validation perplexity (log)", title="share of silent units", ylim=(-0.02, 1.02))
    _plain_log(axes[0].xaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncols=3)
    return figure


def _sae_curves(saes: list[Trained]) -> Figure:
    figure, axes = plt.subplots(1, 3)
    for sae, (_, colour, label) in zip(saes, _labelled([sae.name for sae in saes]), strict=True):
        curve = sae.curve.to_pydict()
        unexplained = [max(1e-6, 1 - fve) for fve in curve["fve"]]
        for axis, values in zip(axes, (unexplained, curve["l0"], curve["dead"]), strict=True):
            axis.plot(curve["step"], values, color=colour, label=label)
    axes[0].set(xlabel="step", yscale="log", title="1 − FVE, training")
    axes[1].set(xlabel="step", yscale="log", title="L0, training")
    axes[2].set(xlabel="step", ylim=(-0.02, 1.02), title="silent since the last point")
    _plain_log(axes[0].yaxis)
    _plain_log(axes[1].yaxis)
    _legend(axes[0])
    return figure


def _densities(saes: list[Trained]) -> Figure:
    figure, axes = plt.subplots()
    for sae, (_, colour, label) in zip(saes, _labelled([sae.name for sae in saes]), strict=True):
        density = sae.metrics["density"]
        axes.stairs(density["counts"], density["log10_edges"], color=colour, label=label, fill=len(saes) == 1, alpha=0.9, linewidth=1.6)
    axes.set(xlabel="log10 density (share of rows in which a latent fires)", ylabel="latents")
    filled = [
        edge
        for sae in saes
        for edge, count in zip(sae.metrics["density"]["log10_edges"], sae.metrics["density"]["counts"], strict=False)
        if count
    ]
    axes.set_xlim(min(filled, default=-6) - 0.25, 0.05)
    _legend(axes)
    return figure


def _frontier(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(8.4, 3.4))
    for number, (group, saes) in enumerate(results.groups().items()):
        l0, fve = [sae.metrics["l0"] for sae in saes], [sae.metrics["fve"] for sae in saes]
        label = " · ".join(group)
        axes.scatter(l0, fve, s=34, color=f"C{number % 8}", marker="osD^vPX*"[number // 8 % 8], label=label, zorder=3)
        axes.annotate(
            group[2], (float(np.mean(l0)), float(np.mean(fve))), xytext=(6, 4), textcoords="offset points", fontsize=8, color="#30363d"
        )
    axes.set(xlabel="L0 (active latents per row, log)", ylabel="FVE", xscale="log", title="sparsity against reconstruction, held out")
    if len({sae.group[:2] for sae in results.saes}) > 1:
        axes.legend(fontsize=7, ncols=2)
    _plain_log(axes.xaxis)
    axes.margins(0.15)
    return figure
