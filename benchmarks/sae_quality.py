"""How well SAEs reconstruct at equal L0 and equal tokens: ours beside SAELens, dictionary-learning and sparsify, on one store.

    python benchmarks/sae_quality.py                       # those of the peers that are installed (pip install -e '.[peers]')
    python benchmarks/sae_quality.py --k 32 --architectures topk --plot frontier.svg --json numbers.json
    python benchmarks/sae_quality.py --read numbers.json more.json --plot frontier.svg        # of earlier runs; trains nothing

All see the same rows of `blocks.3.resid_post` of stories15M (the store of studies/architectures.yaml, made if it is not there), the same
number of times and in batches of one size, and are measured on the same held-out rows by one formula (docs/design.md, section 6). Each
tool has its own published defaults for everything else. Only warm-ups are shortened, of the peers alone, to a twentieth of the run where a
default is more: most defaults are for runs of a hundred times as many rows.

ReLU and gated SAEs are given weights of their L1 penalty, in our units (error and penalty as shares of the variance and of its root) and
converted to each tool's. They end at different L0, so that FVE at equal L0 is interpolated along log L0 between neighbours.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import log, nan
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import sae_quality_peers as peers
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore
from pipeline.evaluation.reconstruction import Reconstruction
from pipeline.evaluation.sparsity import Sparsity
from pipeline.saes import checkpoint
from pipeline.saes.train import Source, begun, loader, train

ROOT = Path(__file__).parents[1]
STUDY, STORE, HOOK = "studies/architectures.yaml", "results/architectures/activations/block3", "blocks.3.resid_post"
SPARSITY = {"topk": "k", "batchtopk": "k", "jumprelu": "target_l0", "relu": "l1", "gated": "l1"}
"""What sets how many latents are active, by architecture."""
ARCHITECTURES = tuple(SPARSITY)
Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows (B, D) -> latents (B, M), reconstructions (B, D)."""


@dataclass(frozen=True)
class Task:
    """What all are given."""

    architecture: str
    sparsity: float
    """k, or the L0 that is asked for; of `relu` and `gated` the weight of the L1 penalty in our units."""
    latents: int
    batch: int
    epochs: int
    seed: int
    rows_ND: Tensor

    @property
    def k(self) -> int:
        return int(self.sparsity)

    def l1(self, mean_square: float) -> float:
        """The same weight beside the squared error itself, in units in which the activations have this mean squared norm."""
        share = (self.rows_ND - self.rows_ND.mean(0)).square().sum() / self.rows_ND.square().sum()
        return self.sparsity * (share.item() * mean_square) ** 0.5

    @property
    def steps(self) -> int:
        return self.epochs * (len(self.rows_ND) // self.batch)

    def batches(self) -> Iterator[Tensor]:
        """Full batches, in a new order each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(self.rows_ND), generator=generator)
            for some in order.split(self.batch)[: len(self.rows_ND) // self.batch]:
                yield self.rows_ND[some]


def ours(task: Task, store: ActivationStore) -> Predict:
    """This project, with the defaults of a study."""
    spec: dict[str, Any] = {"architecture": task.architecture, "latents": task.latents, "seed": task.seed, "hook": HOOK}
    spec |= {SPARSITY[task.architecture]: task.sparsity}
    spec["training"] = {"batch": task.batch, "epochs": task.epochs}
    sae, settings = checkpoint.build(spec, task.rows_ND.shape[1])
    source = Source(store, HOOK, HOOK)
    batches = loader(source, settings)
    run = begun(sae, settings, source, batches)
    train({"ours": run}, source, batches)
    kept = run.kept()

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        f = kept.encode(x)
        return f, kept.predict(f, x)

    return predict


@torch.no_grad()
def measured(predict: Predict, rows_ND: Tensor) -> dict[str, float]:
    """L0, FVE, share of latents that never fire, on held-out rows."""
    parts = []
    for x in rows_ND.split(1024):
        f, found = predict(x)
        parts.append((Reconstruction.of(x, found), Sparsity.of(f, 0.0)))
    reconstruction, sparsity = (sum(some[1:], some[0]) for some in zip(*parts, strict=True))
    found = sparsity.finish(0.0)
    return {"l0": found["l0"], "fve": reconstruction.finish()["fve"], "dead": found["dead"]}


def stored(folder: Path, split: str) -> ActivationStore:
    """The store of a split; the study's is made where it is not there."""
    if folder == ROOT / STORE and not (folder / split / "manifest.json").is_file():
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", STUDY, "--", f"{STORE}/{split}/manifest.json"]
        subprocess.run(command, cwd=ROOT, check=True)
    return ActivationStore(folder / split / "manifest.json")


def rows_of(store: ActivationStore) -> Tensor:
    """All rows that are not flagged (N, D)."""
    return torch.cat([torch.from_numpy(some) for some in store[HOOK].batches(4096)])


def interpolated(some: list[tuple[float, float]], l0: float) -> float:
    """FVE at an L0, along log L0 between the points (L0, FVE) on both sides; nan beyond them."""
    some = sorted(some)
    for (low, fve_low), (high, fve_high) in pairwise(some):
        if low <= l0 <= high:
            return fve_low + (fve_high - fve_low) * (log(l0 / low) / log(high / low) if high > low else 0.0)
    return nan


def at_equal_l0(lines: list[dict[str, Any]], levels: list[int]) -> None:
    """Prints FVE at equal L0, of architectures that end at another one than was asked for."""
    print("FVE at L0".ljust(52), *(f"{level:>7}" for level in levels))
    for architecture, tool in dict.fromkeys((line["architecture"], line["tool"]) for line in lines):
        some = [(line["l0"], line["fve"]) for line in lines if (line["architecture"], line["tool"]) == (architecture, tool) and line["l0"]]
        if architecture not in ("topk", "batchtopk"):
            print(f"{architecture:10} {tool:41}", *(f"{interpolated(some, level):7.4f}" for level in levels))


def plot(lines: list[dict[str, Any]], file: Path) -> None:
    """L0 against FVE: a colour for each tool, a marker for each architecture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tools, marks = list(dict.fromkeys(line["tool"] for line in lines)), dict(zip(ARCHITECTURES, "osD^v", strict=True))
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for tool in tools:
        for architecture in ARCHITECTURES:
            some = sorted((line["l0"], line["fve"]) for line in lines if (line["tool"], line["architecture"]) == (tool, architecture))
            if some:
                look = {"color": f"C{tools.index(tool)}", "marker": marks[architecture]}
                axes.plot(*zip(*some, strict=True), label=f"{tool} {architecture}", **look)
    axes.set(xlabel="L0 (log)", ylabel="FVE, held out", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--l1", type=float, nargs="+", default=[0.06, 0.12, 0.2, 0.3])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--tools", nargs="+", help="ours, " + ", ".join(peers.TOOLS))
    parser.add_argument("--latents", type=int, default=2304)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path, default=ROOT / STORE, help="folder of stores of a train and a validation split")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, nargs="+", metavar="JSON", help="shows what earlier runs wrote, and trains nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [line for file in options.read for line in json.loads(file.read_text())["lines"]] if options.read else compared(options)
    at_equal_l0(lines, options.k)
    if options.plot:
        plot(lines, options.plot)


def compared(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line of each tool, architecture and sparsity."""
    there, missing = peers.installed()
    for name, why in missing.items():
        print(f"{name}: not installed ({why})")
    store = stored(options.store, "train")
    rows, held_out = rows_of(store), rows_of(stored(options.store, "validation"))
    print(f"{len(rows):,} rows x {options.epochs}, {rows.shape[1]} -> {options.latents} latents; held out {len(held_out):,}", flush=True)
    lines = []
    for architecture in options.architectures:
        for sparsity in options.l1 if SPARSITY[architecture] == "l1" else options.k:
            task = Task(architecture, sparsity, options.latents, options.batch, options.epochs, options.seed, rows)
            tools = {"ours": lambda task: ours(task, store), **there.get(architecture, {})}
            for tool in [name for name in tools if name in (options.tools or tools)]:
                torch.manual_seed(options.seed)
                start = time.perf_counter()
                found = measured(tools[tool](task), held_out)
                seconds = time.perf_counter() - start
                lines.append({"tool": tool, "architecture": architecture, SPARSITY[architecture]: sparsity, **found, "seconds": seconds})
                numbers = f"L0 {found['l0']:6.1f}  FVE {found['fve']:.4f}  dead {found['dead']:6.1%}  {seconds:6.0f} s"
                print(f"{architecture:10} {SPARSITY[architecture]} {sparsity:<5g} {tool:34} {numbers}", flush=True)
    if options.json:
        settings = {name: getattr(options, name) for name in ("latents", "batch", "epochs", "seed", "threads")}
        options.json.write_text(json.dumps({"rows": len(rows), "held_out": len(held_out), **settings, "lines": lines}, indent=1))
    return lines


if __name__ == "__main__":
    main()
