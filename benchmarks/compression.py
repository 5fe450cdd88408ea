"""What the bytes of a shard cost, beside the machine's own limits: the writer's rate, and what compression saves and takes.

    SAEFLOW_DATA=... python benchmarks/compression.py [writer] [codecs] [--rows 65536]

writer   MB/s of one shard of random float32 through ShardWriter, beside memcpy, crc32c, XXH3 and a plain new file that is flushed,
         each by itself, and beside the last three one after the other, which is what one thread can give.
codecs   activations of stories15M at blocks.3.resid_post, in every dtype and compression: their size over that of float32, how fast a
         store is written, and read in chunks of 1 MiB: as float32 and compared with their published checksums, and by zarr-python with
         its own codecs and with those of zarrs, which do neither. Beside it a plain file of float32, written and flushed, and read.

MB are those of the same rows in float32, so that equal numbers are equal rows per second. Medians of the turns, which rivals take
in turn. Files are read from the system's cache. codecs needs stories15M/ and tinystories.txt in the data folder.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import zarr
from crc32c import crc32c
from harvest import CONTEXT, DIGEST, Case, in_turns, stories, stories15m
from xxhash import xxh3_128

from pipeline.activations.filling import BITS
from pipeline.activations.layout import CODECS, STORE, STORED, Layout
from pipeline.activations.seal import seal
from pipeline.activations.store import ActivationStore
from pipeline.activations.writer import ShardWriter
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.storage import Folder
from pipeline.study.activations import Activations

HOOK = "blocks.3.resid_post"


def shard(rows: int) -> dict[str, np.ndarray]:
    """The index of so many rows."""
    return {"token": np.zeros(rows, np.int32), "sequence": np.arange(rows), "position": np.zeros(rows, np.int32)}


def plain(path: Path, values: np.ndarray) -> None:
    """The least that writing takes."""
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        file.write(values)
        os.fsync(file.fileno())


def writer(folder: Path, rows: int, turns: int) -> None:
    """Prints rates of a shard's way to the disk."""
    for width in (288, 4096):
        spec = Activations(model="given", hooks=[HOOK]).settings()
        rows = Layout.of(2**30, {HOOK: width}, spec).shard_rows
        spec["shard_rows"] = rows  # a store of few of them would have smaller ones
        values = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
        ours = ShardWriter(Folder(folder), Layout.of(rows * turns, {HOOK: width}, spec), DIGEST, {HOOK: 10 * width**0.5}, [])
        ours.start()
        shards, files = iter(range(turns)), iter(range(turns))
        works = {
            "memcpy": partial(np.copyto, np.zeros_like(values), values),
            "memcpy to new memory": values.copy,
            "crc32c": partial(crc32c, values),
            "XXH3": partial(xxh3_128, values),
            "new file": lambda values=values, files=files: plain(folder / f"{values.shape[1]}-{next(files)}", values),
            "ShardWriter": lambda ours=ours, values=values, shards=shards: ours.write(next(shards), {HOOK: values, **shard(len(values))}),
        }
        taken = in_turns(turns, **works)
        rate = {name: values.nbytes / 1e6 / statistics.median(some) for name, some in taken.items()}
        limit = 1 / sum(1 / rate[name] for name in ("crc32c", "XXH3", "new file"))
        print(f"one shard of {rows:,} x {width} float32, {values.nbytes / 2**20:.0f} MiB, MB/s")
        print(f"  {', '.join(f'{name} {one:,.0f}' for name, one in rate.items())}")
        print(
            f"  crc32c, XXH3 and new file one after the other {limit:,.0f}; ShardWriter over it {rate['ShardWriter'] / limit:.2f}",
            flush=True,
        )


def recorded(folder: Path, rows: int) -> tuple[torch.Tensor, Artifact]:
    """Activations of stories15M (rows, 288), float32, and the dataset they are of."""
    data = Path(os.environ.get("SAEFLOW_DATA") or sys.exit("codecs: the variable SAEFLOW_DATA names no data folder"))
    dataset = stories(folder / "stories", data)
    case = Case(stories15m(data, dataset), dataset, CONTEXT, rows, hooks=[HOOK], sinks_above=None)
    case.seal(folder / "recorded", case.harvest(folder / "recorded"))
    column = ActivationStore(folder / "recorded" / MANIFEST)[HOOK]
    return torch.from_numpy(column.read(0, len(column))), dataset


def stored(values: torch.Tensor, dtype: str) -> np.ndarray:
    """Numbers as a shard takes them."""
    found = values.to(getattr(torch, dtype))
    bits = BITS.get(found.dtype)
    return found.numpy() if bits is None else found.view(bits).numpy().view(STORED[dtype])


class Sides:
    """One dtype and compression: writing a store of given rows, and reading it."""

    def __init__(self, folder: Path, values: torch.Tensor, dataset: Artifact, dtype: str, compression: str) -> None:
        self.folder, self.values, self.dataset = folder, stored(values, dtype), dataset
        self.spec = Activations(model="given", hooks=[HOOK], dtype=dtype, compression=compression, sinks_above=None).settings()
        self.layout = Layout.of(len(values), {HOOK: values.shape[1]}, self.spec)
        self.folder.mkdir()

    def write(self) -> None:
        """All shards."""
        for path in self.folder.rglob("c/*/0"):
            path.unlink()
        one = ShardWriter(Folder(self.folder), self.layout, DIGEST, {HOOK: None}, [])
        one.start()
        for number in range(self.layout.shards):
            start, stop = self.layout.span(number)
            one.write(number, {HOOK: self.values[start:stop], **shard(stop - start)})

    def publish(self) -> float:
        """Seals the store; bytes of the hook on the disk."""
        facts = {"layout": self.layout.describe(), "left_out": {"rule": "none", "tokens": [], "positions": 0}, "sinks": None}
        identity = {"model": "none", "dataset": self.dataset.hash, "split": "train", "length": 1, "meanings": {HOOK: HOOK}}
        part: dict[str, Any] = {"digest": DIGEST, "facts": facts}
        seal(self.folder, Folder(self.folder), [part], self.spec, {"dataset": self.dataset}, identity)
        return sum(path.stat().st_size for path in (self.folder / STORE / HOOK / "c").rglob("*") if path.is_file())

    def read(self) -> None:
        """All chunks, one at a time, by this project."""
        column = ActivationStore(self.folder / MANIFEST)[HOOK]
        for start in range(0, len(column), column.chunk_rows):
            column.read(start, start + column.chunk_rows)

    def read_zarr(self, pipeline: str) -> None:
        """The same by zarr-python with a codec pipeline."""
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(self.folder / STORE, path=HOOK, mode="r")
            for start in range(0, len(self.values), self.layout.chunk_rows[HOOK]):
                array[start : start + self.layout.chunk_rows[HOOK]]


def codecs(folder: Path, rows: int, turns: int) -> None:
    """Prints a table of dtypes and compressions."""
    values, dataset = recorded(folder, rows)
    size, exact = values.nbytes / 1e6, values.numpy()
    taken = in_turns(turns, write=partial(plain, folder / "plain", exact), read=(folder / "plain").read_bytes)
    rate = {name: size / statistics.median(some) for name, some in taken.items()}
    print(f"{HOOK} of stories15M, {rows:,} rows of {values.shape[1]}, {size:.0f} MB in float32")
    print(f"plain file of float32, MB/s: {', '.join(f'{name} {one:,.0f}' for name, one in rate.items())}")
    pipelines = {"zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
    pipelines |= {"zarrs": "zarrs.ZarrsCodecPipeline"} if importlib.util.find_spec("zarrs") else {}
    print(f"{'dtype':9} {'compression':11} {'size':>5} {'write':>8} {'read':>8}  " + "  ".join(f"{'by ' + name:>14}" for name in pipelines))
    for dtype in STORED:
        for compression in CODECS:
            one = Sides(folder / f"{dtype}-{compression}", values, dataset, dtype, compression)
            write = statistics.median(in_turns(turns, write=one.write)["write"])
            share = one.publish() / values.nbytes
            rivals = {name: partial(one.read_zarr, pipeline) for name, pipeline in pipelines.items()}
            ours, *others = (size / statistics.median(some) for some in in_turns(turns, ours=one.read, **rivals).values())
            beside = "  ".join(f"{other:14,.0f}" for other in others)
            print(f"{dtype:9} {compression:11} {share:5.2f} {size / write:8,.0f} {ours:8,.0f}  {beside} MB/s", flush=True)


def main() -> None:
    parts = {"writer": writer, "codecs": codecs}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"what to measure: {', '.join(parts)}; both when none is given")
    parser.add_argument("--rows", type=int, default=2**16, help="of codecs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"'{unknown[0]}' is no part; there are {', '.join(parts)}")
    torch.set_num_threads(options.threads)
    for part in options.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](Path(folder), options.rows, options.turns)


if __name__ == "__main__":
    main()
