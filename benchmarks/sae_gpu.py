"""Tokens per second of training a TopK SAE from a store on a GPU, beside the machine's own product in bfloat16 and beside sparsify.

    python benchmarks/sae_gpu.py [--rows 2097152] [--width 768] [--latents 24576] [--k 32] [--batch 8192] [--steps 200]
    python benchmarks/sae_gpu.py --device cpu --rows 65536 --width 64 --latents 512 --batch 1024 --steps 20     # tries the script itself

from the store: batches as a study's training gets them, shuffled and checked; held: one batch, again and again, which leaves reading out.
The limit is `x @ W_enc` in bfloat16; the share says how much of its rate the encoder's product alone takes at the speed reached. sparsify
(with Triton on a GPU, under autocast to bfloat16 as its trainer has it) is given the held batch. Steps include optimizer, counters and the
norms of the decoder's rows. Wanted on an H100 or better: a million tokens per second at the default shape.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import read
import sae_peers
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore
from pipeline.saes import checkpoint
from pipeline.saes.run import Run
from pipeline.saes.train import Source, begun, loader
from pipeline.training.device import autocast, device, has_bfloat16

WARM = 10
"""Steps before the clock starts."""


def seconds(steps: int, step: Callable[[], object]) -> float:
    """Of one step, on the device."""
    for _ in range(WARM):
        step()
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait()
    return (time.perf_counter() - start) / steps


def _wait() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def run_of(store: ActivationStore, width: int, spec: dict[str, object]) -> tuple[Run, Iterator[Tensor]]:
    """A run as `train_sae` begins it, and its batches without end."""
    sae, settings = checkpoint.build({"hook": "x", **spec}, width)
    source = Source(store, "x", "x")
    batches = loader(source, settings)
    return begun(sae.train(), settings, source, batches), (batch["x"] for batch in batches.batches())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rows": 2**21, "width": 768, "latents": 24576, "k": 32, "batch": 8192, "steps": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", help="in which the store holds its rows")
    options = parser.parse_args()
    os.environ["SAEFLOW_DEVICE"] = options.device
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("sae_gpu.py: there is no GPU here; --device cpu tries the script itself")
    where, k, rows = device(), options.k, options.batch
    precision = "bfloat16" if has_bfloat16(where) else "float32"
    training = {"batch": rows, "lr": 1e-4, "precision": precision, "epochs": 1}
    spec = {"architecture": "topk", "latents": options.latents, "k": k, "training": training}
    with tempfile.TemporaryDirectory() as folder:
        store = read.make(Path(folder), options.rows, options.width, dtype=options.dtype)
        run, batches = run_of(store, options.width, spec)
        held = next(batches).clone()
        W_enc = run.sae.W_enc.detach().bfloat16() if precision == "bfloat16" else run.sae.W_enc.detach()
        x = held.to(W_enc.dtype)
        bare = seconds(options.steps, lambda: x @ W_enc)
        flops = 2 * rows * options.width * options.latents
        print(f"B {rows}, d {options.width}, m {options.latents}, k {k}, {precision}, on {_name(where)}")
        print(f"  {'x @ W_enc':22} {rows / bare:12,.0f} tokens/s  {flops / bare / 1e12:8.1f} TFLOP/s")

        def show(what: str, step: Callable[[], object]) -> None:
            taken = seconds(options.steps, step)
            print(f"  {what:22} {rows / taken:12,.0f} tokens/s  {bare / taken:8.1%} of that rate", flush=True)

        def from_store() -> None:
            some = next(batches)
            run.step(some, some)

        show("ours, held batch", lambda: run.step(held, held))
        show("ours, from the store", from_store)
        if "sparsify" in sae_peers.missing():
            print("  sparsify is not installed (pip install -e '.[peers]')")
            return
        with torch.device(where):
            theirs = sae_peers.step("sparsify", "topk", options.width, options.latents, k, rows)

        def peer() -> None:
            with autocast(where, precision):
                theirs(held)

        show("sparsify, held batch", peer)


def _name(where: torch.device) -> str:
    return torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
