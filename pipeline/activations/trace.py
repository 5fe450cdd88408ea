"""From a row of a store back to the data: the document and the token it belongs to, with the text around it; or the row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.activations.store import ActivationStore, Column
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.datasets import tables, tokens


@dataclass(frozen=True)
class Place:
    """Where a row of a store comes from."""

    row: int
    sequence: int
    """Of the split; in a table this is the row of the table."""
    position: int


@dataclass(frozen=True)
class InText(Place):
    """A token of a document."""

    document: int
    """Number of the document in the split."""
    offset: int
    """How many tokens of the document stand before it."""
    token: int
    text: str
    """The token as it is shown to a person."""
    before: list[str]
    after: list[str]
    """The tokens around it in the split, also those of other sequences and documents, and those that are no rows of the store."""


@dataclass(frozen=True)
class InTable(Place):
    """A row of a table."""

    input: list[float]
    target: float


def trace(store: ActivationStore, dataset: Artifact, rows: Sequence[int] | np.ndarray, before: int = 20, after: int = 20) -> list[Place]:
    """Where these rows of a store come from, in the order given; of a text with so many tokens before and after each.

    Raises UserError when the store is not of this dataset, or has no such row.
    """
    check_source(store, dataset)
    numbers = np.asarray(rows, dtype=np.int64)
    wrong = numbers[(numbers < 0) | (numbers >= len(store))]
    if len(wrong):
        raise UserError(f"{store.artifact.folder}: there is no row {wrong[0]:,}; the store has {len(store):,}, numbered from 0")
    sequences, positions = (_gathered(store[name], numbers) for name in ("sequence", "position"))
    places = [Place(*one) for one in zip(numbers.tolist(), sequences.tolist(), positions.tolist(), strict=True)]
    split = store.attributes["split"]
    if dataset.facts["form"] == "table":
        table, target = tables.read(dataset, split)
        return [InTable(**vars(place), input=table[place.sequence].tolist(), target=float(target[place.sequence])) for place in places]
    ids, offsets = tokens.read(dataset, split), tokens.offsets(dataset, split)
    found: list[Place] = []
    for place in places:
        at = place.sequence * store.attributes["length"] + place.position
        document = int(np.searchsorted(offsets, at, side="right")) - 1
        first = max(0, at - before)
        shown = tokens.text(ids[first : at + after + 1], dataset)
        here = at - first
        found.append(
            InText(
                **vars(place),
                document=document,
                offset=at - int(offsets[document]),
                token=int(ids[at]),
                text=shown[here],
                before=shown[:here],
                after=shown[here + 1 :],
            )
        )
    return found


def check_source(store: ActivationStore, dataset: Artifact) -> None:
    """Raises UserError when a store was not recorded over this dataset: its positions would be taken for those of another text."""
    recorded, found = store.attributes["dataset"], dataset.hash
    if recorded != found:
        raise UserError(
            f"{store.artifact.folder}: was recorded over a dataset with hash {recorded[:16]}, and that of {dataset.folder} is {found[:16]}"
        )


def _gathered(index: Column, rows: np.ndarray) -> np.ndarray:
    """Some rows of an index, in the order given; each chunk that has some of them is read once."""
    found = np.empty(len(rows), dtype=np.int64)
    chunks = rows // index.chunk_rows
    for chunk in np.unique(chunks).tolist():
        some, first = chunks == chunk, chunk * index.chunk_rows
        found[some] = index.read(first, first + index.chunk_rows)[rows[some] - first]
    return found
