"""The report's page: one HTML file that needs no network and no other file.

Nothing in it is different from run to run. Times stand in times.js beside it, which the page shows when it is there.
"""

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.artifacts.run import versions
from pipeline.report import models, saes
from pipeline.report.figures import Drawn
from pipeline.report.numbers import percent, plain
from pipeline.report.results import Results, Trained

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(results: Results, figures: dict[str, Drawn], spec: dict[str, Any]) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "plain": plain,
        "percent": percent,
        "lines": lambda text: Markup('{} <br><span class="range">({}</span>').format(*text.split(" (", 1)) if " (" in text else text,
        "json": lambda value: json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False),
    }
    blocks, training = models.blocks(results), saes.training(results)
    first = [found[0] for found in results.groups().values()]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        spec=spec,
        title=spec["title"] or spec["name"],
        results=results,
        models=models.losses(results),
        units=models.units(results),
        blocks=blocks,
        deepest=max((len(row["values"]) for row in blocks), default=0),
        samples=models.samples(results),
        figures={name: {"of": one.of, "image": _inline(one.svg)} for name, one in figures.items()},
        place=saes.place,
        saes=saes.measured(results),
        training=training,
        transcoders=any(sae.output != sae.hook for sae in results.saes),
        best=any(row["kept"] != "last" for row in training),
        held_out=any(row["fve"] != "–" for row in training),
        resampled=any(row["resampled"] != "0" for row in training),
        snapshots=any(row["snapshots"] != "–" for row in training),
        told=saes.told(results),
        unmeasured=saes.unmeasured(results),
        shown=[_shown(sae, spec) for sae in first],
        probes=[{"sae": sae, "spec": sae.probe.spec, "samples": sae.probe.read_json("probe.json")} for sae in first if sae.probe],
        thresholds=sorted({sae.metrics["active_above"] for sae in results.saes}),
        splits=sorted({sae.metrics["split"] for sae in results.saes}),
        rows=sorted({sae.metrics["rows"] for sae in results.saes}),
        positions=sorted({sae.metrics["positions"] for sae in results.saes}),
        versions=versions(),
    ) + "\n"  # fmt: skip


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _shown(sae: Trained, spec: dict[str, Any]) -> dict[str, Any]:
    """The latents that stand for an SAE: spread evenly over those that fire, from the rarest to the most frequent."""
    density = sae.latents["density"].to_numpy()
    alive = np.flatnonzero(density > 0)
    alive = alive[np.argsort(density[alive], kind="stable")]
    count = min(spec["features"], len(alive))
    chosen = alive[np.linspace(0, len(alive) - 1, count).round().astype(int)] if count else []
    by_latent: dict[int, list[dict[str, Any]]] = {int(latent): [] for latent in chosen}
    for context in sae.contexts.filter(np.isin(sae.contexts["latent"].to_numpy(), chosen)).to_pylist() if count else []:
        if context["rank"] < spec["contexts"]:
            by_latent[context["latent"]].append({**context, "runs": _runs(context)})
    statistics = sae.latents.take(np.asarray(chosen, dtype=np.int64)).to_pylist() if count else []
    return {"sae": sae, "alive": len(alive), "latents": [{**row, "contexts": by_latent[row["latent"]]} for row in statistics]}


def _runs(context: dict[str, Any]) -> list[tuple[str, float, float]]:
    """A context's text in runs of one strength: (text, share of the maximum, activation)."""
    runs: list[tuple[str, float, float]] = []
    for token, value in zip(context.get("tokens") or (), context["activations"], strict=False):
        text = token.replace("\n", "↵")
        if runs and value <= 0 and runs[-1][2] <= 0:
            runs[-1] = (runs[-1][0] + text, 0.0, 0.0)
        else:
            runs.append((text, max(0.0, value) / context["activation"], value))
    return runs
