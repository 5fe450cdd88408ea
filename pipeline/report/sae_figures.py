"""Figures of SAEs: L0 against FVE, curves of their training, densities of their latents."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pipeline.report.drawing import legend, looks, plain_log
from pipeline.report.results import Results, Trained
from pipeline.report.saes import place
from pipeline.study.names import without_seed

WORST = 2.0
"""Unexplained share above which curves leave the figure: what a run begins with is often far worse, and would hide how it ends."""


def frontier(results: Results, entries: dict[str, dict[str, str]]) -> Figure:
    """L0 against FVE. Each entry of the study on each hook has a colour and a marker; variants of one that differ by more than the seed
    are joined by a line through their means, and named where they stand."""
    activations_of, places = {sae.group[0] for sae in results.saes}, {(sae.group[0], sae.hook, sae.output) for sae in results.saes}
    kinds: dict[str, dict[str, list[Trained]]] = {}
    for (activations, hook, name), saes in results.groups().items():
        entry, kind = entries["saes"][saes[0].name], saes[0].kind
        label = entry if kind == entry else f"{entry} ({kind})"
        if len(places) > 1:
            label += f" · {place(activations if len(activations_of) > 1 else hook, hook, saes[0].output)}"
        kinds.setdefault(label, {})[name.removeprefix(entry).removeprefix("_") or entry] = saes
    figure, axes = plt.subplots(figsize=(8.4, 3.6))
    shown = looks(kinds)
    for label, groups in kinds.items():
        points = {name: np.array([(sae.metrics["l0"], sae.metrics["fve"]) for sae in saes]) for name, saes in groups.items()}
        l0, fve = np.concatenate(list(points.values())).T
        axes.scatter(l0, fve, s=34, alpha=0.85, label=label, zorder=3, **shown[label].point())
        if len(points) > 1 or len(kinds) == 1:
            means = {name: found.mean(0).tolist() for name, found in points.items()}
            axes.plot(*np.array(sorted(means.values())).T, color=shown[label].colour, linewidth=0.8, alpha=0.5)
            for name, at in means.items():
                axes.annotate(name, (at[0], at[1]), xytext=(6, 4), textcoords="offset points", fontsize=7.5, color="#30363d")
    axes.set(xlabel="L0 (active latents per row, log)", ylabel="FVE", xscale="log", title="sparsity against reconstruction, held out")
    legend(figure, axes, below=True)
    plain_log(axes.xaxis)
    axes.margins(0.15)
    return figure


def curves(saes: list[Trained]) -> Figure:
    """What was measured while SAEs on one hook were trained: on held-out rows where there are any, and on the batches."""
    figure, axes = plt.subplots(1, 3)
    shown = looks(without_seed(sae.name) for sae in saes)
    for sae in saes:
        curve, name = sae.curve.to_pydict(), without_seed(sae.name)
        held_out = "validation_fve" in curve
        step, bold, faint = curve["step"], shown[name].line(), shown[name].line(faint=held_out)
        axes[0].plot(step, _unexplained(curve["fve"]), **faint)
        axes[1].plot(step, curve["l0"], **faint)
        axes[2].plot(step, curve["dead"], label=name, **bold)
        if held_out:
            axes[0].plot(step, _unexplained(curve["validation_fve"]), **bold)
            axes[1].plot(step, _numbers(curve["validation_l0"]), **bold)
    which = "held out (bold), training" if any("validation_fve" in sae.curve.column_names for sae in saes) else "training"
    axes[0].set(xlabel="step", yscale="log", title=f"1 − FVE: {which}")
    axes[1].set(xlabel="step", yscale="log", title=f"L0: {which}")
    axes[2].set(xlabel="step", ylim=(-0.02, 1.02), title="dead: silent for the window")
    axes[0].set_ylim(top=min(axes[0].get_ylim()[1], WORST))
    plain_log(axes[0].yaxis)
    plain_log(axes[1].yaxis)
    legend(figure, axes[2])
    return figure


def _numbers(values: list[float | None]) -> Any:
    return np.array(values, dtype=float)  # what was not measured at a point is None, and then no number


def _unexplained(values: list[float | None]) -> Any:
    return np.maximum(1e-6, 1 - _numbers(values))


def densities(saes: list[Trained]) -> Figure:
    """How many latents of SAEs on one hook fire how often."""
    figure, axes = plt.subplots()
    shown = looks(without_seed(sae.name) for sae in saes)
    for sae in saes:
        density, name = sae.metrics["density"], without_seed(sae.name)
        axes.stairs(density["counts"], density["log10_edges"], label=name, fill=len(saes) == 1, **shown[name].line())
    axes.set(xlabel="log10 density (share of rows in which a latent fires)", ylabel="latents")
    filled = [
        edge
        for sae in saes
        for edge, count in zip(sae.metrics["density"]["log10_edges"], sae.metrics["density"]["counts"], strict=False)
        if count
    ]
    axes.set_xlim(min(filled, default=-6) - 0.25, 0.05)
    legend(figure, axes)
    return figure
