"""What is recorded of a model."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.study.base import Count, Distinct, Name, Spec

Split = Literal["train", "validation", "test"]


class Activations(Spec):
    """Outputs of some hooks of one model, recorded in one pass over splits of its dataset."""

    model: Name
    """The model. If it is swept, each variant is recorded."""
    hooks: Annotated[list[str], Field(min_length=1), Distinct]
    """Where in the model, such as `blocks.1.resid_post` or `layer2`."""
    splits: Annotated[list[Split], Field(min_length=1), Distinct] = ["train", "validation"]
    """SAEs train on `train`; evaluation and features name theirs."""
    batch: Count = 256
    """Rows (tables) or sequences (tokens) in a forward pass. Part of the result: another number changes floating-point sums."""
    rows: Count | None = None
    """Rows (positions) recorded of each split: the first so many, all when not given."""
    chunk_rows: Count = 4096
    """Rows in a chunk, the unit that is read and checked."""
    shard_rows: Count = 65536
    """Rows in a shard, the unit that is one file; a multiple of `chunk_rows`."""
    threads: Count = 2
    """Compute threads."""

    def settings(self) -> dict:
        """What the harvest step reads."""
        return self.model_dump(mode="json", exclude={"model", "splits"})
