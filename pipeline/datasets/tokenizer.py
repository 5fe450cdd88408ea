"""Texts to token ids: raw bytes, a Hugging Face tokenizer, or a byte-level BPE trained on the train split.

How a document ends: as the tokenizer itself does it where it puts special tokens around a text (Llama: <s> in front; BERT:
[CLS] and [SEP]); otherwise its end-of-text token follows each document. Documents of bytes are followed by byte 255, which
UTF-8 never uses, so that a token stays one byte; a single stream of bytes has nothing added.
"""

import json
from collections.abc import Iterable
from copy import deepcopy
from itertools import chain
from typing import Any, Protocol

import numpy as np
import tokenizers

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Draft
from pipeline.datasets import token_files, vocabulary
from pipeline.datasets.blocks import Block
from pipeline.study.corpora import END_OF_TEXT

FILE = "tokenizer.json"


class Encoder(Protocol):
    """What turns blocks into ids."""

    text: bool
    """Whether it takes UTF-8 only."""
    file: str
    """"bytes", or the name of its file."""
    vocabulary: int
    special: list[int]

    def encode(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Ids (tokens,) of a block and how many each piece has (pieces,), with what is put before and after documents."""

    def write(self, draft: Draft) -> None:
        """Writes what readers need: the vocabulary, and the tokenizer where it has a file."""


class Bytes:
    """One token per byte; `ends`: and one, 255, after each document."""

    text = False
    file = "bytes"
    vocabulary = 256
    END = b"\xff"

    def __init__(self, ends: bool) -> None:
        self.special = [255] if ends else []

    def encode(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.fromiter(map(len, block.pieces), np.int64, len(block.pieces))
        if not self.special:
            return np.frombuffer(b"".join(block.pieces), np.uint8), lengths
        for piece in block.pieces:
            if self.END in piece:
                shown = piece[max(0, piece.find(self.END) - 20) :][:40]
                raise UserError(f"a document holds byte 255 (near {shown!r}), which marks the end of documents in bytes; UTF-8 never uses it")
        lengths += block.ends
        if block.ends.all():
            return np.frombuffer(self.END.join([*block.pieces, b""]), np.uint8), lengths
        tails = map((b"", self.END).__getitem__, block.ends.tolist())
        return np.frombuffer(b"".join(chain.from_iterable(zip(block.pieces, tails, strict=True))), np.uint8), lengths

    def write(self, draft: Draft) -> None:
        pieces = [b"" if i in self.special else bytes([i]) for i in range(256)]
        token_files.write_vocabulary(draft, pieces, dict.fromkeys(self.special, END_OF_TEXT))


class Subwords:
    """A tokenizer of the `tokenizers` library, by its JSON definition."""

    text = True
    file = FILE

    def __init__(self, definition: dict[str, Any], end: str | None, name: str) -> None:
        """`end`: its end-of-text token, used where it puts nothing around a text. `name` is for faults: where it is from."""
        definition = {**definition, "truncation": None, "padding": None}
        definition["model"] = {**definition["model"], **({"dropout": None} if "dropout" in definition["model"] else {})}
        self.name = name
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        self.before, self.after = self._around(end)
        self.within = self.tokenizer
        """For what is inside a long document: it puts no space in front."""
        definition = json.loads(self.tokenizer.to_str())
        if (bare := _without_prefix(definition)) != definition:
            self.within = tokenizers.Tokenizer.from_str(json.dumps(bare))
        known = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(known.values()) + 1
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = sorted({i for i, token in added.items() if token.special} | {*self.before, *self.after})

    def _around(self, end: str | None) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before and after a text, or nothing and the end-of-text token."""
        sample = next((text for text in ("a", "the", "0", ".") if self.tokenizer.encode(text, add_special_tokens=False).ids), None)
        if sample is None:
            raise UserError(f"{self.name}: the tokenizer makes nothing of any of 'a', 'the', '0' and '.'")
        bare, dressed = (self.tokenizer.encode(sample, add_special_tokens=add).ids for add in (False, True))
        for start in range(len(dressed) - len(bare) + 1):
            before, after = dressed[:start], dressed[start + len(bare) :]
            if dressed[start : start + len(bare)] == bare and (before or after):
                return before, after
        if end is None or (found := self.tokenizer.token_to_id(end)) is None:
            wanted = f"its end-of-text token '{end}' is not in the vocabulary" if end else "names no end-of-text token"
            raise UserError(f"{self.name}: puts no special tokens around a text, and {wanted}; tokenizer_config.json: eos_token")
        self.tokenizer.add_special_tokens([end])
        return [], [found]

    def encode(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        texts = [piece.decode() for piece in block.pieces]
        if self.within is self.tokenizer or block.starts.all():
            lists = self._ids(self.tokenizer, texts)
        else:
            starts = block.starts.tolist()
            first = iter(self._ids(self.tokenizer, [text for text, start in zip(texts, starts, strict=True) if start]))
            later = iter(self._ids(self.within, [text for text, start in zip(texts, starts, strict=True) if not start]))
            lists = [next(first if start else later) for start in starts]
        lists = [
            (self.before if start else []) + ids + (self.after if end else [])
            for ids, start, end in zip(lists, block.starts.tolist(), block.ends.tolist(), strict=True)
        ]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        dtype = np.min_scalar_type(self.vocabulary - 1)
        return np.fromiter(chain.from_iterable(lists), dtype, int(lengths.sum())), lengths

    @staticmethod
    def _ids(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def write(self, draft: Draft) -> None:
        self.tokenizer.save(str(draft.path(FILE)))
        definition = json.loads(self.tokenizer.to_str())
        pieces, names = vocabulary.table(definition, self.vocabulary, self.special, self.name)
        token_files.write_vocabulary(draft, pieces, names)


def trained(texts: Iterable[str], size: int) -> Subwords:
    """A byte-level BPE of at most `size` tokens, GPT-2's pre-tokenizer; token 0 ends documents. Equal texts give an equal one."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return Subwords(json.loads(model.to_str()), END_OF_TEXT, "bpe")


def _without_prefix(definition: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without the space that some put in front of a text."""
    bare = deepcopy({key: value for key, value in definition.items() if key != "model"})
    normalizers, pre = (_parts(bare, key) for key in ("normalizer", "pre_tokenizer"))
    for part in pre:
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    if any(part["type"] == "Prepend" for part in normalizers):
        bare["normalizer"] = {"type": "Sequence", "normalizers": [part for part in normalizers if part["type"] != "Prepend"]}
    return {**bare, "model": definition["model"]}


def _parts(definition: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return vocabulary.parts(definition.get(key))
