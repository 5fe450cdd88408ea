"""Dead latents with and without resampling, and with Adam's moments of resampled latents left at zero, as elsewhere.

    python benchmarks/sae_resampling.py [--l1 0.2] [--resample 0.25 0.5] [--latents 2304] [--epochs 1] [--threads 2]

A ReLU SAE on the rows of `blocks.3.resid_post` of stories15M (the store of studies/architectures.yaml, made if it is not there), with a
penalty that kills latents. Prints FVE, L0 and the share of latents that fire in none of the held-out rows.
"""

import argparse
from collections.abc import Callable

import sae_quality
import torch

from pipeline import memory
from pipeline.saes import checkpoint
from pipeline.saes.train import Source, begun, loader, train
from pipeline.training.optimizer import ScheduledAdamW


def trained(source: Source, options: argparse.Namespace, resample: list[float]) -> dict[str, float]:
    """The last row of the curve."""
    training = {"batch": 2048, "epochs": options.epochs, "points": 10, "dead_share": 0.1, "resample": resample}
    spec = {"architecture": "relu", "l1": options.l1, "latents": options.latents, "hook": source.hook, "training": training}
    sae, settings = checkpoint.build(spec, source.store[source.hook].shape[1])
    batches = loader(source, settings)
    run = begun(sae, settings, source, batches)
    train({"sae": run}, source, batches)
    return run.at.curve[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--l1", type=float, default=0.2)
    parser.add_argument("--resample", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--latents", type=int, default=2304)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory.keep()
    folder = sae_quality.ROOT / sae_quality.STORE
    train_rows, held_out = (sae_quality.stored(folder, split) for split in ("train", "validation"))
    source = Source(train_rows, sae_quality.HOOK, sae_quality.HOOK, held_out)
    begin: Callable[..., None] = ScheduledAdamW._begin
    ways = {
        "no resampling": ([], begin),
        "resampled, moments of zero": (options.resample, lambda adam: adam.fresh.clear()),
        "resampled": (options.resample, begin),
    }
    for name, (resample, way) in ways.items():
        ScheduledAdamW._begin = way  # type: ignore[method-assign]
        row = trained(source, options, resample)
        numbers = f"FVE {row['validation_fve']:.3f}  L0 {row['validation_l0']:5.1f}  dead {row['validation_dead']:.1%}"
        print(f"{name:28} {numbers}", flush=True)


if __name__ == "__main__":
    main()
