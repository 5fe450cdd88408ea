"""Which tokens a text becomes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.study.base import Spec, Whole
from pipeline.study.places import folder

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json"),
)
"""What a tokenizer in a folder is read from. Without the first, `transformers` makes one of the others."""
SMALLEST = 257
"""Tokens of a BPE that has merged nothing: 256 bytes and the end of a document."""


class Tokenizer(Spec):
    """Raw bytes, a Hugging Face tokenizer, or a byte-level BPE trained on the train split."""

    kind: Literal["bytes", "hub", "bpe"] = "bytes"
    name: str | None = None
    """hub: a folder with a tokenizer.json, also one in the data folder, or a name on the Hugging Face hub."""
    revision: str | None = None
    """hub: branch, tag or commit of a tokenizer on the hub."""
    vocabulary: Annotated[int, Whole, Field(ge=SMALLEST, le=2**24)] | None = None
    """bpe: how many tokens it may have, the 256 bytes and the end of a document among them."""

    def sources(self) -> list[str]:
        """Files of the user that the tokenizer is read from."""
        if self.kind != "hub" or self.name is None or not folder(self.name).is_dir():
            return []
        return [str(file) for file in (folder(self.name) / name for name in FILES) if file.is_file()]

    @model_validator(mode="after")
    def _settings_of_its_kind(self) -> Self:
        needs = {"bytes": None, "hub": "name", "bpe": "vocabulary"}
        for kind, key in needs.items():
            if key and kind != self.kind and getattr(self, key) is not None:
                raise ValueError(f"{key}: is of tokenizers of kind {kind}, not {self.kind}")
            if key and kind == self.kind and getattr(self, key) is None:
                raise ValueError(f"{key}: is missing (a tokenizer of kind {kind} needs it)")
        if self.revision is not None and (self.name is None or is_path(self.name)):
            raise ValueError("revision: is of tokenizers on the hub")
        if self.name is not None and is_path(self.name) and not folder(self.name).is_dir():
            raise ValueError(f"name: no such folder: '{self.name}'")
        return self


def is_path(name: str) -> bool:
    """Whether a name means a folder and not something on the hub (`owner/name` or `name`)."""
    return folder(name).is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
