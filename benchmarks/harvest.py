"""How fast activations are recorded, beside the machine's own limit and SAELens; every ratio is of one run, whose sides take turns.

    SAEFLOW_DATA=... python benchmarks/harvest.py [forward] [peer] [--quick]

forward  the whole harvest of stories15M (reading windows, the first sample, sums, hashes, writing, flushing) over the bare forward of the
         same batches up to the last hook, which records nothing; with sealing, and one hook or three. Wanted: 0.90 or more.
peer     SAELens' CacheActivationsRunner over TransformerLens' forward up to the same layer, without recording: a model of the same
         shape, of random weights.

Ratios are medians of the turns, in brackets the least and the most. forward needs stories15M/ and tinystories.txt in the data folder,
peer the package sae-lens. All is on the processor. Jobs and memory: harvest_jobs.py. Writing and compression alone: compression.py.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import pipeline.activations.harvest
from pipeline import memory
from pipeline.activations.harvest import Job, harvest
from pipeline.activations.rows import Rows, tokens_left_out
from pipeline.activations.seal import seal
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.storage import Folder
from pipeline.models import checkpoint
from pipeline.models.examples import TokenExamples
from pipeline.steps import make_dataset
from pipeline.study.activations import Activations
from pipeline.study.datasets.text import Text

DIGEST = "of a benchmark"
HOOKS = {"one hook": ["blocks.3.resid_post"], "three hooks": ["blocks.1.resid_post", "blocks.2.mlp_out", "blocks.3.resid_post"]}
BATCH, CONTEXT = 32, 128
ALONE = Job()


class Enough(Exception):
    """The forward has passed the last hook."""


class Case:
    """A model, a dataset's windows and settings of activations."""

    def __init__(self, model: torch.nn.Module, dataset: Artifact, length: int, rows: int, **chosen: Any) -> None:
        self.model, self.dataset, self.length = model.eval().requires_grad_(False), dataset, length
        self.spec = {**Activations(model="given", batch=BATCH, rows=rows, **chosen).settings(), "split": "train"}

    def rows(self) -> Rows:
        split = TokenExamples(self.dataset, "train", self.length)
        return Rows(split, self.spec["batch"], tokens_left_out(self.dataset, self.spec["leave_out"]), self.spec["rows"])

    def harvest(self, folder: Path, job: Job = ALONE) -> dict[str, Any]:
        """What a job leaves for `seal`."""
        folder.mkdir(exist_ok=True, parents=True)
        return {"digest": DIGEST, "facts": harvest(self.model, self.rows(), self.spec, Folder(folder), DIGEST, job)}

    def seal(self, folder: Path, part: dict[str, Any]) -> None:
        meanings = {hook: hook for hook in self.spec["hooks"]}
        identity = {"model": "none", "dataset": self.dataset.hash, "split": "train", "length": self.length, "meanings": meanings}
        seal(folder, Folder(folder), [part], self.spec, {"dataset": self.dataset}, identity)

    def inputs(self, job: Job = ALONE) -> list[torch.Tensor]:
        """Those of a job's share of the batches."""
        rows = self.rows()
        found = [batch.inputs for _, batch in rows.batches(0, rows.total)]
        return found[job.number * len(found) // job.jobs : (job.number + 1) * len(found) // job.jobs]

    @torch.no_grad()
    def forward(self, inputs: list[torch.Tensor]) -> None:
        """The model up to the last hook, and nothing else."""
        for some in inputs:
            left = set(self.spec["hooks"])

            def tap(name: str, value: torch.Tensor, left: set[str] = left) -> torch.Tensor:
                left.discard(name)
                if not left:
                    raise Enough
                return value

            try:
                self.model(some, tap)
            except Enough:
                continue


class Inside:
    """Seconds that harvests spend in the forward of their batches, that of the first sample left out: it tells what recording costs
    where the speed of the machine itself changes from turn to turn."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def timed(self, work: Callable[[], Any]) -> Any:
        """What `work` gives; it harvests once."""
        forward, taken = pipeline.activations.harvest._outputs, []

        def outputs(*given: Any) -> Any:
            start = time.perf_counter()
            found = forward(*given)
            taken.append(time.perf_counter() - start)
            return found

        pipeline.activations.harvest._outputs = outputs
        try:
            return work()
        finally:
            pipeline.activations.harvest._outputs = forward
            self.seconds.append(sum(taken[1:]))


def in_turns(turns: int, **works: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each work in each turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return taken


def ratio(above: list[float], below: list[float]) -> str:
    """Of two sides, turn by turn."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def show(what: str, tokens: int, taken: list[float], bare: list[float] | None) -> None:
    """Prints a speed, and over that of the bare forward."""
    over = f"   over the bare forward {ratio(bare, taken)}" if bare else ""
    print(f"  {what:17} {tokens / statistics.median(taken):9,.0f} tokens/s{over}", flush=True)


def forward(folder: Path, quick: bool, turns: int) -> None:
    """Prints the harvest of stories15M over its bare forward."""
    data = Path(os.environ.get("SAEFLOW_DATA") or sys.exit("forward: the variable SAEFLOW_DATA names no data folder"))
    dataset = stories(folder / "stories", data)
    for what, hooks in HOOKS.items():
        case = Case(stories15m(data, dataset), dataset, CONTEXT, 100_000 if quick else 400_000, hooks=hooks)
        inputs, store, part = case.inputs(), folder / "store", {}
        case.forward(inputs[:2])
        inside = Inside()
        works = {
            "again": lambda store=store: [path.unlink() for path in store.rglob("*") if path.is_file()],
            "harvest": lambda case=case, store=store, part=part, inside=inside: part.update(inside.timed(lambda: case.harvest(store))),
            "bare": lambda case=case, inputs=inputs: case.forward(inputs),
            "seal": lambda case=case, store=store, part=part: case.seal(store, part),
        }
        taken = in_turns(turns, **works)
        tokens = sum(some.numel() for some in inputs)
        print(f"stories15M, {what}, batch {BATCH} x {CONTEXT}, {tokens:,} tokens, {torch.get_num_threads()} threads")
        show("bare forward", tokens, taken["bare"], None)
        show("harvest", tokens, taken["harvest"], taken["bare"])
        shares = [seconds / whole for seconds, whole in zip(inside.seconds, taken["harvest"], strict=True)]
        print(
            f"  {'of the harvest':17} {statistics.median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f}) is the forward of its batches"
        )
        show("harvest and seal", tokens, [h + s for h, s in zip(taken["harvest"], taken["seal"], strict=True)], taken["bare"])


def stories(folder: Path, data: Path) -> Artifact:
    """TinyStories in the tokens of stories15M."""
    tokenizer = {"kind": "hub", "name": str(data / "stories15M")}
    spec = {"kind": "text", "corpus": "tinystories", "path": str(data / "tinystories.txt"), "tokenizer": tokenizer}
    make_dataset.main(Text.model_validate(spec).settings(), folder)
    return Artifact.open(folder / MANIFEST)


def stories15m(data: Path, dataset: Artifact) -> torch.nn.Module:
    """The model, from the data folder."""
    found = checkpoint.fetched({"architecture": "hub", "name": str(data / "stories15M"), "context": CONTEXT}, dataset.facts)
    assert found is not None
    return found[0].eval().requires_grad_(False)


def peer(folder: Path, quick: bool, turns: int) -> None:
    """Prints SAELens' runner over TransformerLens' forward."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    try:
        from datasets import Dataset
        from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        sys.exit("peer: needs SAELens; install it with: pip install sae-lens")
    shape = {"n_layers": 6, "d_model": 288, "n_heads": 6, "d_head": 48, "d_mlp": 768, "n_ctx": CONTEXT, "d_vocab": 32000}
    kind = {"act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 48}
    model = HookedTransformer(HookedTransformerConfig(**shape, **kind, seed=0, device="cpu")).eval()
    cache_activations_runner.load_model = lambda **_: model  # it would fetch one by its name
    ids = np.random.default_rng(0).integers(3, 32000, (BATCH * (24 if quick else 96), CONTEXT))
    dataset, batches = Dataset.from_dict({"input_ids": ids.tolist()}), torch.from_numpy(ids).split(BATCH)
    settings = {
        "dataset_path": "given", "model_name": "given", "model_batch_size": BATCH, "hook_name": "blocks.3.hook_resid_post", "d_in": 288,
        "training_tokens": ids.size, "context_size": CONTEXT, "shuffle": False, "prepend_bos": False, "device": "cpu",
        "buffer_size_gb": 8 * BATCH * CONTEXT * 288 * 4 / 1e9,
    }  # fmt: skip

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            config = CacheActivationsRunnerConfig(**settings, new_cached_activations_path=store)
            CacheActivationsRunner(config, override_dataset=dataset).run()

    @torch.no_grad()
    def bare() -> None:
        for some in batches:
            model(some, stop_at_layer=4)

    model(batches[0], stop_at_layer=4)
    taken = in_turns(turns, runner=run, bare=bare)
    print(f"SAELens' runner, one hook, the shape of stories15M, {ids.size:,} tokens, {torch.get_num_threads()} threads")
    show("bare forward", ids.size, taken["bare"], None)
    show("runner", ids.size, taken["runner"], taken["bare"])


def main() -> None:
    parts = {"forward": forward, "peer": peer}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"what to measure: {', '.join(parts)}; all when none is given")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rows")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"'{unknown[0]}' is no part; there are {', '.join(parts)}")
    torch.set_num_threads(options.threads)
    memory.keep()  # as every step does
    for part in options.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](Path(folder), options.quick, options.turns)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
