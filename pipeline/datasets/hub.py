"""Datasets of the Hugging Face hub, or local folders of one, streamed row by row. No code of a dataset is ever run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.console import say
from pipeline.datasets import blocks, readers
from pipeline.datasets.blocks import Block
from pipeline.study import places
from pipeline.study.datasets.text import Text as Spec
from pipeline.study.datasets.text import inside
from pipeline.study.tokenizer import is_path

_ROWS = 128
_SECONDS_BETWEEN_LINES = 30.0


def faults() -> tuple[type[Exception], ...]:
    """What the libraries of the hub raise for connections, names, splits and files that are not as they should be."""
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    return OSError, ValueError, RuntimeError, DatasetsError, HTTPError, pyarrow.ArrowException


class Hub:
    """A split of a dataset. Its revision is looked up once, so that every pass reads the same rows."""

    def __init__(self, spec: Spec) -> None:
        assert spec.hub is not None
        self.subset, self.split, self.column = spec.subset, spec.hub_split, spec.column
        self.name = str(places.folder(spec.hub)) if is_path(spec.hub) else spec.hub
        self.revision = None if is_path(self.name) else self._commit(spec.revision)

    def _commit(self, revision: str | None) -> str:
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.name, revision=revision).sha)
        except faults() as error:
            raise self._fault(error) from None

    def blocks(self) -> Iterator[Block]:
        """Its documents. Raises UserError, which names the row."""
        shown = time.monotonic()
        count = 0
        for block in blocks.gathered(self._documents(), blocks.BLOCK):
            yield block
            count += int(block.ends.sum())
            if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                say(f"{self.name}: {count:,} documents")

    def _documents(self) -> Iterator[bytes]:
        first = 1
        tables = self._tables()
        while True:
            try:
                table = next(tables, None)
            except faults() as error:
                raise self._fault(error) from None
            if table is None:
                return
            if self.column not in table.column_names:
                raise UserError(f"{self.name}: has no column '{self.column}' (columns: {', '.join(table.column_names)})")
            yield from readers.texts(table[self.column], f"{self.name}: row {{}}: column '{self.column}'", first)
            first += len(table)

    def _tables(self) -> Iterator[Any]:
        import datasets

        builder = datasets.load_dataset_builder(self.name, self.subset, revision=self.revision)
        files, wanted = builder.config.data_files or {}, self.split.split("+")
        if builder.name == "parquet" and all(split in files for split in wanted):
            for file in (file for split in wanted for file in files[split]):
                yield from self._of_parquet(file)
        else:
            yield from builder.as_streaming_dataset(split=self.split).with_format("arrow").iter(batch_size=_ROWS)

    def _of_parquet(self, file: str) -> Iterator[Any]:
        """Its rows, some at a time: the reader of `datasets` would hold whole row groups, which may be a file of gigabytes."""
        import pyarrow.parquet as pq
        from datasets.utils.file_utils import xopen

        with xopen(file, "rb") as handle, pq.ParquetFile(handle, **readers.SPARING) as content:
            names = content.schema_arrow.names
            yield from content.iter_batches(_ROWS, columns=[self.column] if self.column in names else names)

    def _fault(self, error: Exception) -> UserError:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        return UserError(f"{self.name}: the dataset could not be read{'' if is_path(self.name) else ' from the Hugging Face hub'}: {told}")

    def sources(self) -> dict[str, Any]:
        """What was read: the commit, or the files of a local folder with their hashes."""
        if self.revision is not None:
            return {f"hub:{self.name}": self.revision}
        return {file: sha256(Path(file)) for file in inside(self.name)}
