"""The report's numbers for other programs."""

import csv
import io

from pipeline.report.results import Results

COLUMNS = (
    "rows", "flagged", "left_out", "split", "fve", "mse", "mse_per_dim", "relative_reconstruction_bias",
    "l0", "l0_above", "active_above", "dead",
    "loss_clean", "loss_sae", "loss_zero", "loss_mean", "loss_score_zero", "loss_score_mean",
)  # fmt: skip


def sae_table(results: Results) -> str:
    """One line per SAE, as CSV, with every metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["activations", "hook", "output", "sae", "architecture", "seed", "latents", *COLUMNS])
    for sae in results.saes:
        measured = [sae.metrics[name] for name in COLUMNS]
        spec, latents = sae.artifact.spec, sae.artifact.facts["latents"]
        named = [sae.activations, sae.hook, sae.output, sae.name, spec["architecture"], spec["seed"], latents]
        writer.writerow([*named, *measured])
    return out.getvalue()
