"""Stores that tests harvest without Snakemake."""

from pathlib import Path
from typing import Any

from pipeline.activations.harvest import Job, harvest
from pipeline.activations.rows import Rows, tokens_left_out
from pipeline.activations.seal import seal
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.storage import storage
from pipeline.models.examples import examples
from pipeline.study.activations import Activations

DIGEST = "of this study"


def settings(**chosen: Any) -> dict[str, Any]:
    """What a study says of activations of the train split, all that is not chosen by default."""
    return {**Activations(model="given", **{"hooks": ["x"], "batch": 3, **chosen}).settings(), "split": "train"}


def harvest_job(
    folder: Path, model: Any, dataset: Artifact, length: int | None, number: int = 0, jobs: int = 1, location: str | None = None,
    digest: str = DIGEST, memory_mb: int = 4096, **chosen: Any,
) -> dict[str, Any]:  # fmt: skip
    """One job of a harvest; gives what it leaves for `sealed`."""
    spec = settings(**chosen)
    folder.mkdir(exist_ok=True, parents=True)
    split = examples(dataset, "train", length)
    rows = Rows(split, spec["batch"], tokens_left_out(dataset, spec["leave_out"]), spec["rows"])
    place = storage(folder, location)
    place.remove(MANIFEST)
    return {"digest": digest, "facts": harvest(model, rows, spec, place, digest, Job(number, jobs, memory_mb))}


def sealed(
    folder: Path, parts: list[dict[str, Any]], dataset: Artifact, length: int | None, location: str | None = None, **chosen: Any
) -> ActivationStore:
    """The store that jobs have written, published."""
    spec = settings(**chosen)
    meanings = {hook: f"what {hook} is" for hook in spec["hooks"]}
    identity = {"model": "none", "dataset": dataset.hash, "split": "train", "length": length or 1, "meanings": meanings}
    seal(folder, storage(folder, location), parts, spec, {"dataset": dataset}, identity)
    return ActivationStore(folder / MANIFEST)


def harvested(
    folder: Path, model: Any, dataset: Artifact, length: int | None = None, jobs: int = 1, location: str | None = None, **chosen: Any
) -> ActivationStore:
    """A published store of a model over the train split of a dataset: windows of `length` tokens, or the rows of a table."""
    parts = [harvest_job(folder, model, dataset, length, number, jobs, location, **chosen) for number in range(jobs)]
    return sealed(folder, parts, dataset, length, location, **chosen)
