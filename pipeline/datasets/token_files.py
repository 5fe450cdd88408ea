"""Writes token streams: ids and where documents lie in them, in files that grow as the tokens come.

- `<split>.npy`: ids (tokens,), in the smallest unsigned type that holds the vocabulary
- `<split>.documents.npy`: int64 (documents + 1,); document i is ids[offsets[i]:offsets[i + 1]]
- `vocabulary.parquet`: a row per id; `bytes` (what it stands for; nothing for a special token), `text` (what a person is
  shown), `special`
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.manifest import Draft


class Growing:
    """A one-dimensional .npy file of a length that is not known before: the same bytes that np.save writes."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.file = path.open("wb", buffering=0)
        self.dtype = dtype
        self.length = 0
        self._header()

    def _header(self) -> None:
        """numpy leaves room in the header for the length to grow, so it keeps its size."""
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, values: np.ndarray) -> None:
        """Appends values (n,)."""
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Writes the length into the header."""
        self.file.seek(0)
        self._header()
        self.file.close()


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
    pq.write_table(pa.table(columns), draft.path("vocabulary.parquet"))


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
