"""Documents on their way from a file to tokens: some megabytes at a time, those that are long in pieces.

- text travels as UTF-8 bytes
- where a long document is cut depends on its bytes alone, never on how they were read, so neither do its tokens
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

BLOCK = 2**21
"""Bytes of text that are read, encoded and written at a time: with a BPE, some 200 MiB of memory at most."""
PIECE = 2**16
"""Bytes of a document that are encoded at once."""
Takes = Literal["text", "bytes", "bytes below 255"]
"""What an encoder can take: UTF-8 text, any bytes, or any but 255, with which documents of bytes end."""
Apart = Callable[[bytes, bytes], bool]
"""Whether two neighbouring pieces of a document may be encoded each on its own."""


class Block(NamedTuple):
    """Consecutive pieces of documents; most pieces are whole documents."""

    pieces: list[bytes]
    starts: np.ndarray
    """Whether a piece begins a document, bool (pieces,)."""
    ends: np.ndarray
    """Whether it ends one, bool (pieces,)."""

    def select(self, chosen: np.ndarray) -> "Block":
        """The pieces that `chosen`, bool (pieces,), says."""
        if chosen.all():
            return self
        return Block([self.pieces[at] for at in np.flatnonzero(chosen).tolist()], self.starts[chosen], self.ends[chosen])


def whole(documents: list[bytes]) -> Block:
    """A block of documents, cut where they are long. Empty ones are left out: they have no text to learn from."""
    documents = list(filter(None, documents))
    if not documents or max(map(len, documents)) <= PIECE:
        every = np.ones(len(documents), dtype=bool)
        return Block(documents, every, every.copy())
    pieces: list[bytes] = []
    starts: list[bool] = []
    ends: list[bool] = []
    for document in documents:
        cut = list(cut_up(document))
        pieces += cut
        starts += [True] + [False] * (len(cut) - 1)
        ends += [False] * (len(cut) - 1) + [True]
    return Block(pieces, np.array(starts), np.array(ends))


def gathered(documents: Iterable[bytes], size: int) -> Iterator[Block]:
    """Blocks of about `size` bytes."""
    held: list[bytes] = []
    weight = 0
    for document in documents:
        held.append(document)
        weight += len(document)
        if weight >= size:
            yield whole(held)
            held, weight = [], 0
    if held:
        yield whole(held)


def joined(found: Iterable[Block], apart: Apart) -> Iterator[Block]:
    """The same documents, in which neighbouring pieces that are not `apart` are one piece, however long it gets."""
    held: list[bytes] = []
    begins = True
    for block in found:
        if not held and block.starts.all() and block.ends.all():
            yield block
            continue
        pieces: list[tuple[bytes, bool, bool]] = []
        for piece, start, end in zip(block.pieces, block.starts.tolist(), block.ends.tolist(), strict=True):
            if held and apart(held[-1], piece):
                pieces.append((b"".join(held), begins, False))
                held = []
            if not held:
                begins = start
            held.append(piece)
            if end:
                pieces.append((b"".join(held), begins, True))
                held = []
        if pieces:
            texts, starts, ends = zip(*pieces, strict=True)
            yield Block(list(texts), np.array(starts), np.array(ends))


def cut_up(text: bytes) -> Iterator[bytes]:
    """A document in pieces of at most PIECE bytes."""
    start = 0
    while len(text) - start > PIECE:
        length = cut(text[start : start + PIECE])
        yield text[start : start + length]
        start += length
    yield text[start:]


def cut(window: bytes) -> int:
    """How much of the first PIECE bytes of a longer text is encoded on its own.

    Up to the last single space between two ASCII characters in the window's second half: there the usual pre-tokenizers
    (GPT-2's, Llama 3's, BERT's, SentencePiece's) begin a new word, so the tokens are those of the uncut text. Where there
    is none, as in Chinese, after the last line break; or else before a character that would be cut in two.
    """
    half = len(window) // 2
    at = window.rfind(b" ", half, -1)
    while at > half and not (_is_graphic(window[at - 1]) and _is_graphic(window[at + 1])):
        at = window.rfind(b" ", half, at)
    if at > half:
        return at
    return window.rfind(b"\n", half) + 1 or character_start(window, len(window) - 1)


def _is_graphic(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E


def character_start(text: bytes, at: int) -> int:
    """The place of the first byte of the UTF-8 character that has one at `at`; `at` itself in bytes that are no UTF-8."""
    for back in range(min(4, at)):
        if text[at - back] & 0xC0 != 0x80:
            return at - back
    return at
