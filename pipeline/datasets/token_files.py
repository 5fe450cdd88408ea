"""Writes token streams: ids and where documents lie in them, in files that grow as the tokens come.

- `<split>.npy`: ids (tokens,), in the smallest unsigned type that holds the vocabulary
- `<split>.documents.npy`: int64 (documents + 1,); document i is ids[offsets[i]:offsets[i + 1]]
- `vocabulary.parquet`: a row per id; `bytes` (what it stands for; nothing for a special token), `text` (what a person is
  shown), `special`
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.publishing import Draft


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file to write. What the system says of it (a full disk, a quota) becomes a UserError that names it."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path.name}: could not be written in {path.parent}: {error.strerror or error}") from None


class Growing:
    """A one-dimensional .npy file of a length that is not known before: the same bytes that np.save writes.

    Raises UserError when not all of it could be written.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path = path
        self.dtype = dtype
        self.length = 0
        with writing(path):
            self.file = path.open("wb", buffering=0)
            self.header = self._header()

    def _header(self) -> int:
        """Writes the header and returns its bytes. numpy leaves room in it for the length to grow, so it keeps its size."""
        header = BytesIO()
        shape = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(header, shape)
        self._write(header.getbuffer())
        return header.tell()

    def _write(self, content: memoryview) -> None:
        """All of it: a disk that gets full takes a part, and says so only of the next write."""
        while content:
            content = content[self.file.write(content) :]

    def add(self, values: np.ndarray) -> None:
        """Appends values (n,)."""
        with writing(self.path):
            self._write(np.ascontiguousarray(values, dtype=self.dtype).view(np.uint8).data)
        self.length += len(values)

    def close(self) -> None:
        """Writes the length into the header."""
        with writing(self.path):
            self.file.seek(0)
            self._header()
            size = os.fstat(self.file.fileno()).st_size
            self.file.close()
        if size != (expected := self.header + self.length * self.dtype.itemsize):
            raise UserError(f"{self.path.name}: holds {size:,} bytes in {self.path.parent}, and {expected:,} were written")


class SplitFile:
    """The two files of a split."""

    def __init__(self, draft: Draft, split: str, vocabulary: int) -> None:
        self.ids = Growing(draft.path(f"{split}.npy"), np.min_scalar_type(vocabulary - 1))
        self.offsets = Growing(draft.path(f"{split}.documents.npy"), np.dtype(np.int64))
        self.offsets.add(np.zeros(1))

    def add(self, ids: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
        """Appends ids (tokens,) of consecutive pieces of so many tokens (pieces,), some of which end a document."""
        self.offsets.add((self.ids.length + np.cumsum(lengths))[ends])
        self.ids.add(ids)

    @property
    def documents(self) -> int:
        return self.offsets.length - 1

    def close(self) -> None:
        """Both files are whole."""
        self.ids.close()
        self.offsets.close()


def write_vocabulary(draft: Draft, pieces: Sequence[bytes], names: Mapping[int, str]) -> None:
    """What each id stands for; `names` are the special tokens, and ids that no token has."""
    texts = [names[i] if i in names else piece.decode("utf-8", "backslashreplace") for i, piece in enumerate(pieces)]
    columns = {
        "bytes": pa.array(pieces, pa.binary()),
        "text": pa.array(texts, pa.string()),
        "special": [i in names for i in range(len(pieces))],
    }
    with writing(draft.path("vocabulary.parquet")) as file:
        pq.write_table(pa.table(columns), file)


def facts(files: Mapping[str, SplitFile], vocabulary: int, tokenizer: str, special: Sequence[int]) -> dict[str, Any]:
    """What readers need to know; `tokenizer` is "bytes" or the file of a Hugging Face tokenizer."""
    return {
        "form": "tokens",
        "vocabulary": vocabulary,
        "tokenizer": tokenizer,
        "special": list(special),
        "tokens": {split: file.ids.length for split, file in files.items()},
        "documents": {split: file.documents for split, file in files.items()},
    }
