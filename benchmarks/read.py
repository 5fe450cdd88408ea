"""How fast shuffled batches come out of a store, and how well they are shuffled, beside the machine's own limit.

    python benchmarks/read.py [--rows 1048576] [--width 288] [--batch 4096] [--turns 8] [--threads 2]

Speed: MB/s of the rows, float32, as batches that whoever trains gets. The limit is a memmap of the same bytes, copied batch by batch in
the order of the file by one thread. They take turns, and the best of the turns counts, so that what else the machine does meets all of
them; beside it the least processor time of all threads, which hardly feels others. Others: zarr-python's reader, chunk by chunk in random
order (with zarrs where it is installed); SAELens' `ActivationsStore` over cached activations, which mixes within a buffer of a sixteenth
of the rows; and `datasets`, one row per example, shuffled. The last two read a part of the rows, since they are slow.

Order: over all rows, in the order in which they come, the lag-1 correlation of the number of their sequence, how often a row comes from
the sequence of the row before, and the correlation of a row's number with its place in the order; beside a random permutation's.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import zarr

from pipeline.activations.buffer import Memory
from pipeline.activations.loader import ActivationLoader
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.datasets import token_files
from pipeline.memory import keep
from tests.stores import harvested

VOCABULARY, LENGTH = 4096, 128
ZARRS = {"zarrs, the same": {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}} if importlib.util.find_spec("zarrs") else {}
PROMPTS = 32
"""Sequences that SAELens reads at a time, by default."""


class Lookup(torch.nn.Module):
    """A model that gives each token a row, so that a harvest costs little."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(0))

    def forward(self, ids: torch.Tensor, tap: Callable) -> torch.Tensor:
        return tap("x", self.rows[ids])


def make(folder: Path, rows: int, width: int, **chosen: Any) -> ActivationStore:
    """A store, harvested as a study would, with some settings of activations."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, rows + 1)
    with publishing(folder / "tokens", "dataset", {"kind": "given"}, {}) as draft:
        split = token_files.SplitFile(draft, "train", VOCABULARY)
        split.add(ids, np.array([len(ids)]), np.array([True]))
        split.close()
        token_files.write_vocabulary(draft, [bytes([i % 256]) for i in range(VOCABULARY)], {})
        draft.facts |= token_files.facts({"train": split}, VOCABULARY, "bytes", [])
    return harvested(folder / "store", Lookup(width), Artifact.open(folder / "tokens" / MANIFEST), LENGTH, batch=64, **chosen)


def memmap(path: Path, rows: int, width: int, batch: int) -> None:
    """The limit: the same bytes in plain order, neither checked nor shuffled."""
    values = np.memmap(path, dtype=np.float32, mode="r", shape=(rows, width))
    for start in range(0, rows, batch):
        torch.from_numpy(np.array(values[start : start + batch]))


def drain(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def costs(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    before = time.process_time()
    return seconds(work), time.process_time() - before


def chunks_of(folder: Path, pipeline: dict[str, str]) -> Callable[[], None]:
    """A Zarr library that reads every chunk of `x`, in random order."""
    with zarr.config.set(pipeline):
        array = zarr.open_array(folder / "store/store.zarr/x", mode="r")
    rows, size = array.shape[0], array.chunks[0]

    def work() -> None:
        for chunk in np.random.default_rng(0).permutation(-(-rows // size)):
            torch.from_numpy(array[chunk * size : (chunk + 1) * size])

    return work


def sae_lens(folder: Path, values: np.ndarray, batch: int) -> Callable[[], None]:
    """SAELens' own path from cached activations to training batches."""
    from datasets import Array2D, Dataset, Features
    from sae_lens.training.activations_store import ActivationsStore

    rows, width = values.shape
    sequences = np.ascontiguousarray(values[: rows // LENGTH * LENGTH]).reshape(-1, LENGTH, width)
    made = Dataset.from_dict({"x": sequences}, features=Features({"x": Array2D((LENGTH, width), "float32")}))
    made.save_to_disk(folder / "sae_lens")
    buffer = max(2 * batch, rows // 16)
    settings: dict[str, Any] = {
        "model": None, "dataset": None, "streaming": False, "hook_name": "x", "hook_head_index": None, "context_size": LENGTH,
        "d_in": width, "n_batches_in_buffer": buffer // LENGTH, "total_training_tokens": rows, "store_batch_size_prompts": PROMPTS,
        "train_batch_size_tokens": batch, "prepend_bos": False, "normalize_activations": "none", "device": torch.device("cpu"),
        "dtype": "float32", "cached_activations_path": str(folder / "sae_lens"),
    }  # fmt: skip
    return lambda: drain(islice(ActivationsStore(**settings), rows // batch))


def arrow(folder: Path, values: np.ndarray, batch: int) -> Callable[[], None]:
    """`datasets`, one row per example, shuffled."""
    from datasets import Dataset, Features, List, Value, load_from_disk

    features = Features({"x": List(Value("float32"), length=values.shape[1])})
    Dataset.from_dict({"x": values}, features=features).save_to_disk(folder / "arrow")
    made = load_from_disk(str(folder / "arrow")).with_format("torch")
    return lambda: drain(made.shuffle(seed=0).iter(batch))


def order_of(numbers: np.ndarray) -> str:
    """Lag-1 correlation of sequences, share of neighbours of one sequence, correlation of number and place."""
    sequence = numbers // LENGTH
    lag = np.corrcoef(sequence[:-1], sequence[1:])[0, 1]
    drift = np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]
    return f"{lag:+12.5f} {np.mean(np.diff(sequence) == 0):18.3%} {drift:+18.5f}"


def orders(store: ActivationStore, batch: int, mb: float) -> None:
    """How far from a random permutation each way of reading is."""
    from sae_lens.training.mixing_buffer import mixing_buffer

    rows = len(store)
    print(f"\n{'order':62} {'lag-1':>12} {'same sequence next':>18} {'number and place':>18}")
    print(f"{'random permutation':62} {order_of(np.random.default_rng(0).permutation(rows))}")
    print(f"{'as stored':62} {order_of(np.arange(rows))}")
    for share in (2, 0.5, 0.25, 0.1, 0.05):
        loader = ActivationLoader(store, "x", batch, 0, max(8, int(share * mb * 1.06)))
        numbers = np.concatenate([one.rows.numpy() for one in loader.epoch(0)])
        how = "exact" if loader.exact else f"{loader.blocks_held:,} of {len(loader.blocks):,} chunks at a time"
        print(f"{f'ours, memory {min(share, 1):.0%} of the rows, {how}':62} {order_of(numbers)}", flush=True)
    for share in (0.5, 0.1, 0.05):
        parts = iter(torch.arange(rows)[:, None].split(PROMPTS * LENGTH))
        found = mixing_buffer(max(batch, int(share * rows)), batch, parts, 0.5)
        print(f"{f'SAELens, buffer {share:.0%} of the rows':62} {order_of(torch.cat(list(found))[:, 0].numpy())}", flush=True)


def first_epochs(store: ActivationStore, batch: int, budgets: dict[str, int], path: Path, mb: float) -> None:
    """With memory that no one has touched, beside what touching as much costs; files are in the page cache."""
    for what, budget in budgets.items():
        opened = time.perf_counter()
        loader = ActivationLoader(ActivationStore(store.artifact.folder / MANIFEST), "x", batch, 0, budget)
        batches = loader.epoch(0)
        next(batches)
        first = time.perf_counter() - opened
        drain(batches)
        whole = time.perf_counter() - opened
        held = sum(Memory.bytes(loader.columns, loader.blocks, loader.blocks_held) for _ in loader._memories)
        touching = seconds(lambda held=held: np.empty(held // 4, dtype=np.float32).fill(1))
        limit = seconds(lambda: memmap(path, *store["x"].shape, batch))
        print(
            f"{f'first epoch, {what}':62} {mb / whole:8,.0f} MB/s; first batch {first * 1e3:,.0f} ms after the manifest; "
            f"touching {held / 1e6:,.0f} MB of new memory {touching * 1e3:,.0f} ms; memmap copy {mb / limit:,.0f} MB/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2**20)
    parser.add_argument("--width", type=int, default=288)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", help="where the temporary folder is made; about four times the rows' bytes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep()  # as every step does
    warnings.filterwarnings("ignore", message="All samples in the training dataset")
    rows, width, batch = options.rows, options.width, options.batch
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        store = make(folder, rows, width)
        values, path, mb = store["x"].read(0, rows), folder / "plain", rows * width * 4 / 1e6
        values.tofile(path)
        budgets = {"memory half of the rows": max(8, int(mb / 2)), "memory a tenth": max(8, int(mb / 10))}
        budgets["all rows in memory"] = int(1.2 * mb) + 16
        part = values[: max(rows // 8, 2 * PROMPTS * LENGTH)]
        fewer = part[: len(part) // 4]
        lens, hub = "SAELens, cached activations", "datasets, one row per example"
        others = {lens: (sae_lens(folder, part, batch), part.nbytes / 1e6), hub: (arrow(folder, fewer, batch), fewer.nbytes / 1e6)}
        del values
        first_epochs(store, batch, budgets, path, mb)
        loaders = {f"later epochs, {what}": ActivationLoader(store, "x", batch, 0, budget) for what, budget in budgets.items()}
        works: dict[str, Callable[[int], Any]] = {"memmap copy": lambda turn: memmap(path, rows, width, batch)}
        works |= {what: lambda turn, loader=loader: drain(loader.epoch(turn)) for what, loader in loaders.items()}
        libraries = {"zarr-python, chunks in random order": {}} | ZARRS
        readers = {what: chunks_of(folder, pipeline) for what, pipeline in libraries.items()}
        works |= {what: lambda turn, work=work: work() for what, work in readers.items()}
        taken: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
        for turn in range(options.turns + 1):
            for what, work in works.items():
                taken[what].append(costs(lambda work=work, turn=turn: work(turn)))
        taken = {what: [(wall / mb, processor / mb) for wall, processor in times[1:]] for what, times in taken.items()}
        for what, (work, size) in others.items():
            taken[what] = [(wall / size, processor / size) for wall, processor in (costs(work) for _ in range(2))]
        limit = min(taken["memmap copy"])[0]
        for what, times in taken.items():
            wall, processor = (min(some) for some in zip(*times, strict=True))
            share, gb = limit / wall, 1e3 * processor
            print(f"{what:62} {1 / wall:8,.0f} MB/s   {share:6.3f} of the memmap copy   {gb:6.3f} processor s/GB", flush=True)
        orders(store, batch, mb)


if __name__ == "__main__":
    main()
