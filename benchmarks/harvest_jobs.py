"""What jobs that share a harvest gain, and how much memory one takes; small models of random weights, on the processor.

    python benchmarks/harvest_jobs.py [jobs] [memory] [--quick]

jobs     two jobs that share a harvest over one, each of one thread and in a process of its own, and whether the bytes are equal; beside
         it what the machine gives two processes that only compute the same batches. A ratio is the median of the turns, in brackets the
         least and the most.
memory   peak memory of a harvest of 1, 4 and 16 times as many rows, with sealing. On Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from harvest import Case, ratio

from pipeline.activations.harvest import Job
from pipeline.activations.layout import Layout
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.datasets import token_files
from pipeline.models import checkpoint

MODEL = {"architecture": "gpt", "layers": 4, "width": 128, "heads": 4, "context": 64}
SHARD_ROWS = 2**13
"""4 MiB."""


def noise(folder: Path, count: int) -> Artifact:
    """So many tokens drawn at random, none of them special."""
    with publishing(folder, "dataset", {"kind": "given"}, {}) as draft:
        split = token_files.SplitFile(draft, "train", 256)
        split.add(np.random.default_rng(0).integers(0, 256, count), np.array([count]), np.array([True]))
        split.close()
        token_files.write_vocabulary(draft, [bytes([i]) for i in range(256)], {})
        draft.facts |= token_files.facts({"train": split}, 256, "bytes", [])
    return Artifact.open(folder / MANIFEST)


def small(dataset: Path, rows: int) -> Case:
    """The model, over random tokens."""
    model, _ = checkpoint.build(MODEL, {"vocabulary": 256})
    return Case(model, Artifact.open(dataset / MANIFEST), MODEL["context"], rows, hooks=["blocks.1.resid_post"], shard_rows=SHARD_ROWS)


def child(*options: str | Path | int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", *map(str, options)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def together(what: str, dataset: Path, rows: int, store: Path, count: int) -> float:
    """Seconds from when `count` processes are ready until the last is done."""
    processes = [child(what, dataset, rows, store, number, count) for number in range(count)]
    for one in processes:
        one.stdout.readline()
    start = time.perf_counter()
    for one in processes:
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in processes:
        one.stdout.readline()
    taken = time.perf_counter() - start
    if any(one.wait() for one in processes):
        sys.exit(f"{what}: a process failed")
    return taken


def jobs(folder: Path, quick: bool, turns: int) -> None:
    """Prints what a second job gains."""
    rows = 2**16 if quick else 2**18
    noise(folder / "noise", rows + 1)
    case, hashes = small(folder / "noise", rows), set()
    taken: dict[str, dict[int, list[float]]] = {"bare forward": {1: [], 2: []}, "harvest": {1: [], 2: []}}
    for turn in range(turns):
        for what, by_count in taken.items():
            for count, some in by_count.items():
                store = folder / f"store{turn}-{count}"
                some.append(together(what, folder / "noise", rows, store, count))
                if what == "harvest":
                    case.seal(store, json.loads((store / "part0.json").read_text()))
                    hashes.add(Artifact.open(store / MANIFEST).hash)
    print(f"jobs of one thread, {rows:,} rows of {MODEL['width']} numbers, {os.cpu_count()} cores")
    for what, by_count in taken.items():
        one, two = (statistics.median(by_count[count]) for count in (1, 2))
        print(f"  {what:12}  one {one:.2f} s, two {two:.2f} s: times faster {ratio(by_count[1], by_count[2])}")
    print(f"  manifests of {2 * turns} stores {'equal' if len(hashes) == 1 else 'DIFFER'}")


def memory(folder: Path, quick: bool, turns: int) -> None:
    """Prints peak memory at growing numbers of rows."""
    least = 2**16 if quick else 2**17
    noise(folder / "noise", 16 * least + 1)
    held = Layout.of(least, {"x": MODEL["width"]}, small(folder / "noise", least).spec).held_bytes() / 2**20
    print(f"peak memory of a process that harvests and seals; memory_mb counts {held:.0f} MiB of rows on their way to the disk")
    for times in (1, 4, 16):
        said, _ = child("memory", folder / "noise", times * least, folder / f"store{times}", 0, 1).communicate("go\n")
        before, peak = json.loads(said.splitlines()[-1])
        size = times * least * MODEL["width"] * 4 / 2**20
        print(
            f"  {times * least:10,} rows, {size:6,.0f} MiB: peak {peak:6.0f} MiB, {peak - before:4.0f} MiB over that of the first forward"
        )


def run_child(what: str, dataset: str, rows: str, store: str, number: str, count: str) -> None:
    """One process of `jobs` or `memory`."""
    torch.set_num_threads(1)
    case, job, folder = small(Path(dataset), int(rows)), Job(int(number), int(count)), Path(store)
    inputs = case.inputs(job) if what == "bare forward" else []
    case.forward([next(case.rows().batches(0, 1))[1].inputs])
    before = peak()
    print("ready", flush=True)
    sys.stdin.readline()
    if inputs:
        case.forward(inputs)
    else:
        part = case.harvest(folder, job)
        (folder / f"part{number}.json").write_text(json.dumps(part))
        if what == "memory":
            case.seal(folder, part)
    print(json.dumps([before, peak()]), flush=True)


def peak() -> float:
    """Peak memory of this program so far, in MiB; ru_maxrss would be that of the process it was forked from."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
        return
    parts = {"jobs": jobs, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"what to measure: {', '.join(parts)}; all when none is given")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rows")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"'{unknown[0]}' is no part; there are {', '.join(parts)}")
    for part in options.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](Path(folder), options.quick, options.turns)


if __name__ == "__main__":
    main()
