"""Texts to token ids: raw bytes, a Hugging Face tokenizer, or a byte-level BPE trained on the train split.

How a document ends: as the tokenizer itself does it where it puts special tokens around a text (Llama: <s> in front; BERT:
[CLS] and [SEP]); otherwise its end-of-text token follows each document. Documents of bytes are followed by byte 255, which
UTF-8 never uses, so that a token stays one byte; a single stream of bytes has nothing added.

The name of a special token in a document, such as <|endoftext|>, is ordinary text: what a text says ends no document.
"""

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any, Protocol

import numpy as np
import tokenizers

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.publishing import Draft
from pipeline.console import say
from pipeline.datasets import token_files, vocabulary, within
from pipeline.datasets.blocks import Apart, Block, Takes
from pipeline.study.corpora import END_OF_TEXT

FILE = "tokenizer.json"


class Encoder(Protocol):
    """What turns blocks into ids."""

    takes: Takes
    apart: Apart | None
    """Which neighbouring pieces of a document it encodes each on its own; None: all."""
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

    apart: Apart | None = None
    file = "bytes"
    vocabulary = 256
    END = b"\xff"

    def __init__(self, ends: bool) -> None:
        self.takes: Takes = "bytes below 255" if ends else "bytes"
        self.special = [255] if ends else []

    def encode(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.fromiter(map(len, block.pieces), np.int64, len(block.pieces))
        if not self.special:
            return np.frombuffer(b"".join(block.pieces), np.uint8), lengths
        lengths += block.ends
        if block.ends.all():
            return np.frombuffer(self.END.join([*block.pieces, b""]), np.uint8), lengths
        tails = map((b"", self.END).__getitem__, block.ends.tolist())
        return np.frombuffer(b"".join(chain.from_iterable(zip(block.pieces, tails, strict=True))), np.uint8), lengths

    def write(self, draft: Draft) -> None:
        pieces = [b"" if i in self.special else bytes([i]) for i in range(256)]
        token_files.write_vocabulary(draft, pieces, dict.fromkeys(self.special, END_OF_TEXT))


class Subwords:
    """A tokenizer of the `tokenizers` library, by its JSON definition.

    Long documents come in pieces, which are encoded apart where the tokenizer allows it (within.py). Where it does not, as
    inside a word for BERT and XLM-R, the text up to the next good place is encoded whole; a few tokenizers allow no cut at
    all, and then memory grows with the longest document.
    """

    takes: Takes = "text"
    file = FILE

    def __init__(self, definition: dict[str, Any], end: str | None, name: str) -> None:
        """`end`: its end-of-text token, used where it puts nothing around a text. `name` is for faults: where it is from."""
        definition = {**definition, "truncation": None, "padding": None}
        definition["model"] = {**definition["model"], **({"dropout": None} if "dropout" in definition["model"] else {})}
        self.name = name
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        self.before, self.after = self._around(end)
        known = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(known.values()) + 1
        added = {i: token.content for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        self.special = sorted({*added, *self.before, *self.after})
        self.first = within.ordinary(self.tokenizer, list(added.values()))
        """What encodes documents, and the first pieces of long ones."""
        definition = json.loads(self.first.to_str())
        bare = within.without_prefix(definition)
        self.later = within.Within(
            self.first, within.ordinary(tokenizers.Tokenizer.from_str(json.dumps(bare)), []) if bare != definition else None
        )
        self.apart: Apart | None = None if self.later.always else self.later.apart
        if self.later.at_words is None:
            say(f"{name}: it cannot encode a document in pieces, so memory grows with the longest document")

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
        if block.starts.all():
            lists = self._ids(self.first, texts)
        else:
            chosen = [self.first if start else self.later.of(piece) for piece, start in zip(block.pieces, block.starts, strict=True)]
            encoders = {id(one): one for one in chosen}
            found = {
                key: iter(self._ids(encoder, [text for text, one in zip(texts, chosen, strict=True) if one is encoder]))
                for key, encoder in encoders.items()
            }
            lists = [next(found[id(one)]) for one in chosen]
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
        with token_files.writing(draft.path(FILE)) as file:
            file.write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")
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
