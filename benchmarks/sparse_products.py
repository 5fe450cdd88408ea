"""Training step of a ReLU SAE with sparse products over the same step dense, by share of active latents.

    python benchmarks/sparse_products.py [--threads 2]

`SPARSE_BELOW` in pipeline/saes/kernels.py stays under the share where the ratio crosses 1 (between 6 % and 10 % on x86). Then squared
errors and all their gradients by one read of the decoder's rows over the same by decoding, by active latents of a row: `_TILES_PAY` there
is about where that crosses 1, as active latents of a row over tiles of 1 MiB that the decoder has.
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
from pipeline.saes.latents import Latents
from pipeline.saes.relu import Module
from pipeline.study.saes.relu import ReLU
from pipeline.study.training import Optimizer
from pipeline.training.optimizer import ScheduledAdamW

SHAPES = [(128, 512, 2048), (1024, 512, 4096), (2048, 128, 1024)]
ACTIVE = [16, 32, 64, 96, 128, 256]
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


def errors_ratio(width: int, latents: int, k: int, rows: int = 2048, turns: int = 12) -> float:
    """Median times, one way over the other, taken in turns."""
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(rows, latents, generator=generator).topk(k, dim=1).indices.sort(1).values
    active, x = kernels.Active.chosen(index, latents), torch.randn(rows, width, generator=generator)
    W_dec, b_dec, values = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((latents, width), (width,), (rows * k,)))
    f = Latents(values, active, torch.empty(0))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for tiles_pay, some in zip((2**10, 0), times, strict=True):
            kernels._TILES_PAY = tiles_pay
            start = time.perf_counter()
            f.errors(W_dec, b_dec, x)[0].sum().backward()
            some.append(time.perf_counter() - start)
    return statistics.median(times[0][2:]) / statistics.median(times[1][2:])


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
    print(f"{'width x latents':>24}" + "".join(f"{k:>9}" for k in ACTIVE) + "   one read / decoding")
    for width, latents in ((512, 4096), (768, 16384)):
        print(f"{width} x {latents}".rjust(24) + "".join(f"{errors_ratio(width, latents, k):>9.2f}" for k in ACTIVE), flush=True)


if __name__ == "__main__":
    main()
