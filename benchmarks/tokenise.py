"""How fast texts become tokens, beside the machine's own limits; every pair of numbers is of one run.

    SAEFLOW_DATA=... python benchmarks/tokenise.py [--megabytes 64] [--threads 2]

Bytes: the dataset step's whole work (reading, splitting, writing to disk, hashes of sources and results) beside a copy of
the same file to disk with the sha256 of both. GPT-2's BPE: the same work beside the `tokenizers` library by itself (its
`encode_batch_fast`, which we call too) on the same documents, all in memory, with the same cores. Needs tinystories.txt and
gpt2-bpe/ in the data folder.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.artifacts.manifest import sha256

SEPARATOR = "<|endoftext|>"


def rates(size: int, *works: Callable[[], Any]) -> list[float]:
    """MB/s of each, the best of four runs; they take turns, so that what else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(4):
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [size / 1e6 / min(taken) for taken in times]


def step(folder: Path, file: Path, **settings: Any) -> None:
    """What `python -m pipeline.steps.make_dataset` does."""
    from pipeline.steps.make_dataset import main
    from pipeline.study.datasets.text import Text

    main(Text.model_validate({"kind": "text", "files": [str(file)], **settings}).settings(), folder / "dataset")


def copy(file: Path, target: Path) -> None:
    """A file copied to disk, and both hashed."""
    with file.open("rb") as source, target.open("wb") as sink:
        while chunk := source.read(2**21):
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    sha256(file)
    sha256(target)


def bare(documents: list[str], tokenizer: Path) -> Callable[[], Any]:
    """The library by itself, in batches as users write them."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    batches = [documents[start : start + 1000] for start in range(0, len(documents), 1000)]
    return lambda: [found.ids for batch in batches for found in loaded.encode_batch_fast(batch)]


def show(what: str, ours: float, other: float, beside: str) -> None:
    print(f"{what:32} {ours:8.1f} MB/s   {beside:34} {other:8.1f} MB/s   ratio {ours / other:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="size of the text for bytes; the BPE takes half of it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    data = Path(os.environ.get("SAEFLOW_DATA") or parser.error("the variable SAEFLOW_DATA names no data folder"))
    stories = (data / "tinystories.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, half = folder / "stories.txt", folder / "half.txt"
        copies = max(2, options.megabytes * 10**6 // len(stories))
        file.write_text((stories + "\n") * copies, encoding="utf-8")
        half.write_text((stories + "\n") * (copies // 2), encoding="utf-8")
        size = file.stat().st_size
        works = lambda: step(folder, file, separator=None), lambda: step(folder, file), lambda: copy(file, folder / "copy")
        stream, apart, limit = rates(size, *works)
        show("bytes, one stream", stream, limit, "copy + sha256 of both")
        show("bytes, documents", apart, limit, "copy + sha256 of both")
        documents = [one.strip("\n") for one in (stories * (copies // 2)).split(SEPARATOR)]
        size = half.stat().st_size
        gpt2 = {"kind": "hub", "name": str(data / "gpt2-bpe")}
        ours, library = rates(size, lambda: step(folder, half, tokenizer=gpt2), bare(documents, data / "gpt2-bpe/tokenizer.json"))
        show(f"GPT-2 BPE, {options.threads} threads", ours, library, "encode_batch_fast, nothing written")


if __name__ == "__main__":
    main()
