"""Writes the report: the page, every figure as a file, the table of SAEs as CSV."""

import json
import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.artifacts.publishing import publishing
from pipeline.artifacts.run import run_facts
from pipeline.report.figures import figures
from pipeline.report.page import page
from pipeline.report.results import Model, Results, load
from pipeline.report.tables import sae_table
from pipeline.steps import command


def main(
    spec: dict[str, Any],
    datasets: list[Path],
    models: list[Path],
    samples: list[Path],
    saes: list[Path],
    evaluation: list[Path],
    features: list[Path],
    probes: list[Path],
    out: Path,
) -> None:
    """Write the report of a study from the manifests of all it made."""
    results = load(datasets, models, samples, saes, evaluation, features, probes)
    with publishing(out, "report", spec, results.artifacts()) as draft:
        drawn = figures(results, spec["entries"])
        for name, figure in drawn.items():
            draft.path(f"figures/{name}").write_bytes(figure.svg)
        draft.path("index.html").write_text(page(results, drawn, spec), encoding="utf-8")
        draft.path("saes.csv").write_text(sae_table(results), encoding="utf-8")
    (out / "times.js").write_text(f"window.saeflowTimes = {json.dumps(_times(results))};\n")


def _times(results: Results) -> dict[str, Any]:
    """What run.json of every artifact says of times, and of this report."""
    runs = {name: json.loads((artifact.folder / "run.json").read_text()) for name, artifact in results.artifacts().items()}
    own = run_facts()
    versions = sorted({", ".join(f"{library} {version}" for library, version in run["versions"].items()) for run in runs.values()})
    return {
        "written": own["started"],
        "host": own["host"],
        "started": min((run["started"] for run in runs.values()), default=own["started"]),
        "versions": versions,
        "artifacts": runs,
        "models": {name: _speed(models) for name, models in results.model_groups().items() if models[0].curve is not None},
    }


def _speed(models: list[Model]) -> dict[str, float | None]:
    """Positions per second while training, and the objectives' share of it: medians over measurements and runs."""
    tables = [pq.read_table(file) for model in models if (file := model.artifact.folder / "timing.parquet").is_file()]

    def middle(column: str) -> float | None:
        found = [value for table in tables if column in table.column_names for value in table[column].to_pylist()]
        return statistics.median(found) if found else None

    return {name: middle(name) for name in ("positions_per_second", "objectives_share")}


if __name__ == "__main__":
    command.run(main)
