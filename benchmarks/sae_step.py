"""Training steps of SAEs beside other tools: same data, same shapes, one process, in turns with the bare encoder product.

    python benchmarks/sae_step.py [--shape small|large|both] [--threads 2] [--turns 9] [--ours] [--no-bfloat16] [--json FILE]
    python benchmarks/sae_step.py --scaling
    python benchmarks/sae_step.py --losses
    python benchmarks/sae_step.py --parts [--shape small|large]

A line says: step time over the time of `x @ W_enc` in float32 (median of the turns, in brackets the least and the most), and latents
active in a row. Optimizer, counters and normalisation are included, and AuxK only where it is named (a tenth of the latents dead).
Other tools are those of `pip install -e '.[peers]'`. `--scaling` shows time against tokens and latents, and memory against tokens;
`--losses` training in which latents are found by a product in bfloat16 (screen.py) beside training by the product in float32, and how many
selections differ; `--parts` where the time of a topk step goes, by compiled loops and by PyTorch's operations.
"""

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import sae_peers
import torch
from torch import Tensor

from pipeline import memory
from pipeline.saes import checkpoint, compiled, latents, screen
from pipeline.saes.product import product
from pipeline.saes.run import Data, Run
from pipeline.saes.units import Units

SHAPES = {"small": (2048, 512, 4096, 32), "large": (2048, 768, 16384, 32)}
"""Rows, width, latents, k."""
L0 = 64
HELD = 1e-12
"""A learning rate that leaves the weights, and so L0, as they are; Adam's work is the same."""
DEAD = 0.1
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {}),
    "topk with AuxK": ("topk", {}),
    "batchtopk": ("batchtopk", {}),
    "matryoshka": ("matryoshka", {}),
    "relu, initial": ("relu", {}),
    f"relu, L0 {L0}": ("relu", {}),
    "jumprelu, initial": ("jumprelu", {}),
    f"jumprelu, L0 {L0}": ("jumprelu", {}),
    "gated, initial": ("gated", {}),
    f"gated, L0 {L0}": ("gated", {}),
}


def ours(label: str, rows: int, width: int, latents: int, k: int) -> Run:
    """A run of this project's trainer, at the wanted L0."""
    architecture, settings = OURS[label]
    own = {"k": k, **settings} if architecture in ("topk", "batchtopk", "matryoshka") else settings
    run = begin({"architecture": architecture, "latents": latents, "training": {"batch": rows, "lr": HELD}, **own}, width, rows, 1000)
    with torch.no_grad():
        if label.endswith(f"L0 {L0}"):
            sparsify(run.sae, data(128, width, seed=1))
        if label.endswith("AuxK"):
            dead = torch.arange(int(DEAD * latents))
            run.sae.b_enc[dead] = -1e3
            run.since_M[dead] = run.window
            run.at.rows = run.window
    return run


def begin(spec: dict[str, Any], width: int, rows: int, steps: int) -> Run:
    """A run on rows of nearly zero mean and unit variance, which it shifts and scales."""
    sae, settings = checkpoint.build({"hook": "given", **spec}, width)
    units = Units(torch.full((width,), 1e-3), 0.999)
    return Run(sae.train(), settings, Data(units, units, float(width), torch.zeros(width), rows * steps, steps))


def sparsify(sae: Any, x: Tensor) -> None:
    """Moves what decides whether latents are active so that `L0` are."""
    pre = (x @ sae.W_enc).flatten()
    edge = pre.kthvalue(round(len(pre) * (1 - L0 / sae.W_enc.shape[1]))).values
    if hasattr(sae, "threshold"):
        sae.threshold.fill_(edge)
    else:
        (sae.b_gate if hasattr(sae, "b_gate") else sae.b_enc).sub_(edge)


def data(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def timed(step: sae_peers.TrainingStep, x: Tensor, W_enc: Tensor, turns: int) -> dict[str, float]:
    """Step time over that of the bare product."""
    bare, whole = [], []
    for turn in range(turns + 2):
        start = time.perf_counter()
        x @ W_enc
        between = time.perf_counter()
        step(x)
        if turn > 1:
            bare.append(between - start)
            whole.append(time.perf_counter() - between)
    ratios = sorted(b / a for a, b in zip(bare, whole, strict=True))
    return {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1], "ms": 1e3 * statistics.median(whole)}


def compare(shape: str, turns: int, peers: bool) -> list[dict[str, Any]]:
    """All lines of one shape."""
    rows, width, latents, k = SHAPES[shape]
    x, W_enc = data(rows, width), data(latents, width, seed=2).T
    print(f"\nB {rows}, d {width}, m {latents}, k {k}", flush=True)
    found = []

    def line(tool: str, label: str, step: sae_peers.TrainingStep, run: Run | None = None) -> None:
        one = {"shape": shape, "tool": tool, "architecture": label, **timed(step, x, W_enc, turns)}
        if run is not None:
            one["l0"] = run.fired_M.sum().item() / run.at.counted
            if label == "topk":
                one["differing"] = differing(run.sae, x, k)
        beside = f"  L0 {one['l0']:.0f}" if "l0" in one else ""
        beside += f", {one['differing']:.1e} of selections differ" if "differing" in one else ""
        print(f"{tool:>20} {label:<28}{one['ratio']:6.2f} [{one['least']:.2f}-{one['most']:.2f}]{one['ms']:9.1f} ms{beside}", flush=True)
        found.append(one)

    line("float32", "bare product, as ours takes it", lambda x: product(x, W_enc))
    for label in OURS:
        run = ours(label, rows, width, latents, k)
        line("ours", label, lambda x, run=run: run.step(x, x), run)
        del run
        gc.collect()
    for tool, architectures in sae_peers.ARCHITECTURES.items() if peers else ():
        for architecture in architectures if tool not in sae_peers.missing() else ():
            line(tool, architecture, sae_peers.step(tool, architecture, width, latents, k, rows))
            gc.collect()
    return found


def scaling() -> None:
    """Seconds against tokens and latents, and the process' peak memory against tokens."""
    rows, width, latents, k = SHAPES["small"]
    x = data(rows, width)
    run = ours("topk", rows, width, latents, k)
    for _ in range(3):
        run.step(x, x)
    print("   tokens   seconds  us/token  peak memory (MiB)")
    for steps in (8, 16, 32, 64):
        start = time.perf_counter()
        for _ in range(steps):
            run.step(x, x)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"{steps * rows:>9,} {seconds:>9.2f} {1e6 * seconds / steps / rows:>9.2f} {peak:>18,.0f}", flush=True)
    print("  latents  us/token  ns/token/latent")
    for number in (2048, 4096, 8192, 16384):
        run = ours("topk", rows, width, number, k)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            run.step(x, x)
            times.append(time.perf_counter() - start)
        each = statistics.median(times[2:]) / rows
        print(f"{number:>9,} {1e6 * each:>9.2f} {1e9 * each / number:>16.3f}", flush=True)


def losses(steps: int = 300, rows: int = 1024, width: int = 128, number: int = 1024, k: int = 16) -> None:
    """FVE of both ways to find latents while they learn sparse sums of directions, and the share of selections that differ."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * number, width, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)

    def batch() -> Tensor:
        active = torch.rand(rows, len(directions), generator=generator) < 10 / len(directions)
        x = (active * torch.rand(active.shape, generator=generator)) @ directions
        return (x + 0.02 * torch.randn(rows, width, generator=generator)) * 5.5

    ways = {"by bfloat16": screen.LEAST, "by float32": 2**62}
    spec = {"architecture": "topk", "latents": number, "k": k, "training": {"batch": rows, "lr": 1e-3}}
    runs = {name: begin(spec, width, rows, steps) for name in ways}
    shown: dict[str, float] = {}
    print("   step  FVE by bfloat16  FVE by float32  selections that differ")
    for step in range(1, steps + 1):
        x = batch()
        for name, run in runs.items():
            screen.LEAST = ways[name]
            error = run.sums.get("squared_error", torch.zeros(())).item()
            run.step(x, x)
            now = run.sums.get("squared_error", torch.zeros(())).item()
            shown[name] = 1 - (now - error) / (x - x.mean(0)).square().sum().item() if now > error else shown.get(name, 0.0)
        if step in (1, 2, 5, 10, 20, 50, 100, 200, 300):
            screen.LEAST = ways["by bfloat16"]
            off = differing(runs["by bfloat16"].sae, x, k)
            print(f"{step:>7} {shown['by bfloat16']:>16.5f} {shown['by float32']:>15.5f} {off:>23.1e}", flush=True)


def parts(shape: str, steps: int = 20) -> None:
    """Milliseconds of a step by what takes them: compiled loops, then PyTorch's own operations, in which a function with loops is one."""
    rows, width, latents, k = SHAPES[shape]
    run, x, seconds, plain = ours("topk", rows, width, latents, k), data(rows, width), Counter[str](), compiled.parallel

    def clocked(function: Any, *given: Any) -> None:
        start = time.perf_counter()
        plain(function, *given)
        seconds[f"loop {function.__name__}"] += time.perf_counter() - start

    for _ in range(4):
        run.step(x, x)
    compiled.parallel = clocked
    start = time.perf_counter()
    for _ in range(steps):
        run.step(x, x)
    print(f"{1e3 * (time.perf_counter() - start) / steps:8.2f} ms a step, {shape}")
    compiled.parallel = plain
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            run.step(x, x)
    for name, value in seconds.most_common():
        print(f"{1e3 * value / steps:8.2f} {name}")
    for event in sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)[:12]:
        print(f"{event.self_cpu_time_total / 1e3 / steps:8.2f} {event.key}")


@torch.no_grad()
def differing(sae: Any, x: Tensor, k: int) -> float:
    """Share of the positive among the k largest of the product in float32 that are not found."""
    centred = sae.centred(x)
    pre = sae.pre(centred)
    largest = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, pre.topk(k, dim=1).indices, True) & (pre > 0)
    chosen = latents.largest(centred, sae.W_enc, sae.b_enc, k)
    chosen = chosen.dense() > 0
    return ((largest & ~chosen).sum() / largest.sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--ours", action="store_true", help="without the other tools")
    parser.add_argument("--no-bfloat16", action="store_true", help="as on a processor without such products")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--parts", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    memory.keep()
    if args.no_bfloat16:
        screen.has_halves = lambda: False
    if args.parts:
        for shape in SHAPES if args.shape == "both" else [args.shape]:
            parts(shape)
        return
    if args.scaling or args.losses:
        (scaling if args.scaling else losses)()
        return
    if not args.ours and (missing := sae_peers.missing()):
        print(f"not installed: {', '.join(missing)} (pip install -e '.[peers]')")
    found = [one for shape in (SHAPES if args.shape == "both" else [args.shape]) for one in compare(shape, args.turns, not args.ours)]
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "torch": torch.__version__, "lines": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
