"""Training step of a ReLU SAE with sparse products over the same step dense, by share of active latents.

    python benchmarks/sparse_products.py [--threads 2]

`SPARSE_BELOW` in pipeline/saes/kernels.py stays under the share where the ratio crosses 1 (between 10 % and 20 % on x86).
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from pipeline import memory
from pipeline.saes import kernels
from pipeline.saes.base import Step
from pipeline.saes.relu import Module
from pipeline.study.saes.relu import ReLU
from pipeline.study.training import Optimizer
from pipeline.training.optimizer import ScheduledAdamW

SHAPES = [(128, 512, 2048), (1024, 512, 4096), (2048, 128, 1024)]
DENSITIES = [0.3, 0.2, 0.15, 0.1, 0.06, 0.03, 0.01]


def step_seconds(x: torch.Tensor, module: Module, sparse_below: float) -> float:
    """Median time of one optimizer step."""
    kernels.SPARSE_BELOW = sparse_below
    optimizer = ScheduledAdamW(module, Optimizer(lr=1e-9), 1000)
    times = []
    for _ in range(13):
        start = time.perf_counter()
        module.losses(x, x, Step(1.0)).total.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    memory.keep()
    print(f"{'rows x width x latents':>24}" + "".join(f"{density:>9.0%}" for density in DENSITIES) + "   sparse / dense step")
    for rows, width, latents in SHAPES:
        x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
        ratios = []
        for density in DENSITIES:
            module = Module(ReLU(architecture="relu", activations="given"), width, latents, width)
            module.initialise(torch.zeros(width))
            with torch.no_grad():
                pre = x @ module.W_enc
                module.b_enc -= pre[:128].flatten().kthvalue(int((1 - density) * 128 * latents)).values
            ratios.append(step_seconds(x, module, 1.0) / step_seconds(x, module, 0.0))
        print(f"{rows:>10} x {width} x {latents}".rjust(24) + "".join(f"{ratio:>9.2f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
