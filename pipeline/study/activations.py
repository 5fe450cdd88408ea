"""What is recorded of a model."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.study.base import Count, Distinct, Name, Number, Spec
from pipeline.study.chunk_sizes import INDEX_CHUNK, row_bytes, undivided, wanted
from pipeline.study.faults import Path, not_among, raised

Split = Literal["train", "validation", "test"]
DType = Literal["float32", "float16", "bfloat16"]
Hooks = Annotated[list[str], Distinct]
SCHEMES = ("s3", "gs", "az", "abfss")
"""Of the object stores that obstore reaches by an address with a bucket, or a container, in it."""
RESERVED = ("token", "sequence", "position", "sinks", "statistics")
"""Names of other arrays of a store (docs/activation-store.md, section 3)."""


def _address(value: str) -> str:
    if not re.fullmatch(rf"({'|'.join(SCHEMES)})://[^/?#\s]+(/[^?#\s]*)?", value):
        raise ValueError(f"an address is expected, {', '.join(f'{one}://' for one in SCHEMES)} and a bucket, perhaps with /a/prefix")
    return value


class Activations(Spec):
    """Outputs of some hooks of one model, recorded in one pass over splits of its dataset (docs/activation-store.md)."""

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
    leave_out: Literal["special", "beginning", "none"] = "special"
    """Positions that become no rows: those of special tokens, which stand for no text (as SAELens and SAEBench do); those of the
    token before a document's text alone; or none."""
    sinks_above: Annotated[float, Number, Field(gt=1)] | None = 10.0
    """Rows whose norm is above so many times the median are attention sinks: flagged, and left out of training, statistics and
    metrics (dictionary_learning's max_activation_norm_multiple, 10 in its demo). Null flags none."""
    dtype: DType = "float32"
    """What numbers are stored as. One that does not fit stops the harvest."""
    sparse: Hooks = []
    """Hooks of which only the numbers that are not zero are stored."""
    covariance: Hooks = []
    """Hooks whose covariance is stored."""
    compression: Literal["none", "zstd", "blosc"] = "none"
    """Of each chunk. Activations are nearly random bits: docs/activation-store.md says what it saves and costs."""
    chunk_rows: Count | None = None
    """Rows in a chunk, the unit that is read and checked; about 1 MiB of each hook when not given."""
    shard_rows: Count | None = None
    """Rows in a shard, the unit that is one file, a multiple of `chunk_rows`; when not given so many that there are about
    64 shards, of 16 to 256 MiB of the widest hook and at most 512 MiB of all hooks."""
    threads: Count = 2
    """Compute threads of each job."""
    jobs: Annotated[Count, Field(le=1000)] = 1
    """Jobs that share the harvest of one split. They change no byte of it; yet where a study is finished, another number makes Snakemake
    run what follows again, unless `snakemake --until seal_store` runs first."""
    memory_mb: Count = 4096
    """Most memory of a job for what the hooks put out: one batch (on the processor), and rows on their way to the disk. It changes no
    byte."""
    location: Annotated[str, AfterValidator(_address)] | None = None
    """Where stores lie instead of in results/: an address such as `s3://bucket/prefix`. Keys and endpoint come from the usual
    AWS_ variables."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        others = f"a store has other arrays under {', '.join(RESERVED)}"
        faults: list[tuple[Path, str]] = [
            (("hooks", position), f"'{hook}' cannot be a hook's name; {others}")
            for position, hook in enumerate(self.hooks)
            if hook.split("/")[0] in RESERVED
        ]
        for name in ("sparse", "covariance"):
            for position, hook in enumerate(getattr(self, name)):
                if hook not in self.hooks:
                    faults.append(((name, position), not_among(hook, self.hooks, "one of hooks")))
        if self.shard_rows and self.chunk_rows and self.shard_rows % self.chunk_rows:
            faults.append((("shard_rows",), f"{self.shard_rows} is not a multiple of chunk_rows, {self.chunk_rows}"))
        if faults:
            raise raised(faults)
        return self

    def chunk_problem(self, widths: Mapping[str, int | None]) -> str | None:
        """Why `shard_rows` has no good chunks, if so, for hooks of these widths; a hook whose width nobody knows yet is passed over."""
        if self.shard_rows is None or self.chunk_rows:
            return None
        known = {hook: row_bytes(width, self.dtype, hook in self.sparse) for hook in self.hooks if (width := widths.get(hook))}
        return undivided(self.shard_rows, {**{hook: wanted(size) for hook, size in known.items()}, "token": INDEX_CHUNK})

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of a store."""
        return self.model_dump(mode="json", exclude={"model", "splits", "jobs", "memory_mb", "location"})
