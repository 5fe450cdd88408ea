"""How long whole studies take, from an empty results folder, beside plain loops of the published recipe.

    python benchmarks/studies.py                      # the default study, a finished study's dry run
    python benchmarks/studies.py --published          # one seed of the published recipe, and plain loops of it
    python benchmarks/studies.py --shakespeare

Times are of this machine at this moment; the ratios to the plain loops, run in the same call, are what to compare.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ONE_SEED = "datasets: {pointer: {sweep: {seed: [0]}}}\nmodels: {mlp: {threads: 2}}\nsaes: {relu: {threads: 2}}\n"


def seconds(folder: Path, *options: str) -> float:
    """Wall time of snakemake in `folder`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder, *options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.perf_counter() - start


def study(what: str, *files: Path) -> float:
    """Runs a study in a new folder, then a dry run of it finished."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--configfile", *map(str, files)]
        whole = seconds(Path(folder), *options)
        again = seconds(Path(folder), "-n", *options)
    print(f"{what:32} {whole:7.1f} s, finished: snakemake -n {again:.2f} s", flush=True)
    return whole


def plain_mlp(epochs: int) -> float:
    """Seconds per epoch of the published MLP recipe, written as its scripts are: DataLoader, AdamW, OneCycleLR, one step after another."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    data = DataLoader(TensorDataset(torch.rand(8000, 10), torch.rand(8000, 1)), batch_size=64, shuffle=True)
    model = nn.Sequential(
        nn.Linear(10, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 512), nn.BatchNorm1d(512), nn.ReLU(),
        nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, steps_per_epoch=len(data), epochs=500)
    start = time.perf_counter()
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return (time.perf_counter() - start) / epochs


def plain_sae(epochs: int) -> float:
    """Seconds per epoch of the published SAE recipe, written in the same way."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    data = DataLoader(TensorDataset(torch.rand(8000, 512)), batch_size=128, shuffle=True)
    encoder, decoder = nn.Linear(512, 2048), nn.Linear(2048, 512)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    start = time.perf_counter()
    for _ in range(epochs):
        for (x,) in data:
            latents = encoder(x).relu()
            loss = nn.functional.mse_loss(decoder(latents), x) + 1e-4 * latents.abs().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - start) / epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--shakespeare", action="store_true")
    options = parser.parse_args()
    if options.published:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as overlay:
            overlay.write(ONE_SEED)
            overlay.flush()
            ours = study("published recipe, one seed", ROOT / "studies/pointer-published.yaml", Path(overlay.name))
        mlp, sae = 500 * plain_mlp(10), 100 * plain_sae(4)
        print(f"{'plain loops, MLP + SAE':32} {mlp + sae:7.1f} s ({mlp:.0f} + {sae:.0f}, from 10 of 500 and 4 of 100 epochs)")
        print(f"{'study / plain loops':32} {ours / (mlp + sae):7.2f}")
    elif options.shakespeare:
        study("shakespeare", ROOT / "studies/shakespeare.yaml")
    else:
        study("default study", ROOT / "config.yaml")


if __name__ == "__main__":
    main()
