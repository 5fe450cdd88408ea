"""Runs a study and says what was made."""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.artifacts.errors import UserError
from pipeline.report.numbers import percent, plain
from pipeline.study.graph import Graph
from pipeline.study.open import read_study

OTHERWISE = {"-n", "--dry-run", "--dryrun", "-C", "--config", "--configfile", "--configfiles", "-d", "--directory", "--report", "--unlock"}
"""Options of snakemake with which this study is not what was run, or nothing was."""


def run(configfile: list[str], options: list[str]) -> None:
    """Runs snakemake on this machine's cores. Raises UserError when it fails."""
    graph = Graph(read_study(configfile or ["config.yaml"]))
    started = time.time()
    chosen = ["--configfile", *configfile] if configfile else []
    if subprocess.run([sys.executable, "-m", "snakemake", *chosen, *options], check=False).returncode:
        raise UserError(f"the study '{graph.study.file.name}' did not finish; run it again to go on where it stopped")
    if OTHERWISE & {option.split("=")[0] for option in options}:
        return
    finished = time.time()
    console = Console(soft_wrap=True, highlight=False)
    if not Path(graph.at("report", "manifest.json")).is_file():
        return
    console.print()
    _show(graph, console)
    clock = "%H:%M:%S"
    console.print(f"\nreport    [bold]{graph.at('report', 'index.html')}[/bold]")
    console.print(f"artifacts {graph.root}/")
    console.print(
        f"started   {time.strftime(clock, time.localtime(started))}\n"
        f"finished  {time.strftime(clock, time.localtime(finished))}\n"
        f"duration  {finished - started:.0f} s"
    )


def _show(graph: Graph, console: Console) -> None:
    for model in graph.study.models:
        metrics = json.loads(Path(graph.at("model", "metrics.json").format(model=model)).read_text())
        losses = ", ".join(
            f"{split} loss {plain(found['loss'])}"
            + (f" ({percent(found['rounded_accuracy'])} right when rounded)" if "rounded_accuracy" in found else "")
            for split, found in sorted(metrics.items(), key=lambda item: ["train", "validation", "test"].index(item[0]))
        )
        console.print(f"model {model}: {losses}")
    if not graph.study.saes:
        return
    table = Table("SAE", "hook", "FVE", "L0", "dead", "loss score", box=None, pad_edge=False)
    for activations, hook, sae in graph.study.saes:
        file = graph.at("evaluation", "metrics.json").format(activations=activations, hook=hook, sae=sae)
        found = json.loads(Path(file).read_text())
        numbers = (plain(found["fve"]), plain(found["l0"], 3), percent(found["dead"]), plain(found["loss_score_zero"]))
        table.add_row(sae, hook if activations == hook else f"{activations} {hook}", *numbers)
    console.print(table)
