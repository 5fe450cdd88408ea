"""Documents of a plain text, found at a separator while the text comes in."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline.datasets import blocks
from pipeline.datasets.blocks import Block


def documents(chunks: Iterable[bytes], separator: str | None) -> Iterator[Block]:
    """What lies between separators; without one, all of it is one document. One block for each chunk that ends a piece.

    A line break right before and right after a separator belong to it, so that `text\\n<|endoftext|>\\ntext` has the
    documents that were written there, without line breaks around them.
    """
    reading = _Reading(separator.encode() if separator else None)
    for chunk in chunks:
        if (block := reading.more(chunk)).pieces:
            yield block
    if (block := reading.end()).pieces:
        yield block


class _Reading:
    """What is known of a text of which the rest is still to come."""

    def __init__(self, separator: bytes | None) -> None:
        self.separator = separator
        self.rest = b""
        """What no piece has yet, of the document that is being read."""
        self.follows = False
        """Whether that document stands behind a separator, so that a line break may begin its rest."""
        self.begun = False
        """Whether earlier pieces of it were given out."""

    def more(self, chunk: bytes) -> Block:
        """The pieces that are certain once `chunk` is known."""
        text = self.rest + chunk
        *complete, self.rest = text.split(self.separator) if self.separator else [text]
        found = []
        if complete:
            first, *others = complete
            found = [self._last(_trimmed(first, self.follows and not self.begun, True))]
            # Nearly every document of a large text is trimmed of \n alone: this loop is what its speed depends on.
            inner = [
                one[1:-1] if len(one) > 2 and one[0] == 10 == one[-1] and one[-2] != 13 else _trimmed(one, True, True) for one in others
            ]
            found.append(blocks.whole(inner))
            self.follows, self.begun = True, False
        found.append(self._beginning())
        return _joined(found)

    def end(self) -> Block:
        """The last document, which no separator ends."""
        return self._last(_trimmed(self.rest, self.follows and not self.begun, False))

    def _beginning(self) -> Block:
        """Pieces of a document whose end is not in sight. Where they are cut is what `blocks.cut_up` would do with all of it."""
        # The end of what is known may be part of a separator and of the line break before it.
        uncertain = len(self.separator) + 1 if self.separator else 0
        if len(self.rest) - uncertain - 2 <= blocks.PIECE:
            return blocks.whole([])
        text = _trimmed(self.rest, self.follows and not self.begun, False)
        pieces: list[bytes] = []
        start = 0
        while len(text) - start - uncertain > blocks.PIECE:
            length = blocks.cut(text[start : start + blocks.PIECE])
            pieces.append(text[start : start + length])
            start += length
        starts = np.zeros(len(pieces), dtype=bool)
        starts[:1] = not self.begun
        self.rest, self.begun = text[start:], self.begun or bool(pieces)
        return Block(pieces, starts, np.zeros(len(pieces), dtype=bool))

    def _last(self, text: bytes) -> Block:
        """What remains of a document that ends here."""
        found = blocks.whole([text])
        if self.begun:
            found.starts[:1] = False
        return found


def _trimmed(text: bytes, start: bool, end: bool) -> bytes:
    """Without one line break at the start, at the end."""
    first = (2 if text.startswith(b"\r\n") else text.startswith(b"\n")) if start else 0
    last = (2 if text.endswith(b"\r\n") else text.endswith(b"\n")) if end else 0
    return text[first : len(text) - last] if first or last else text


def _joined(found: list[Block]) -> Block:
    found = [block for block in found if block.pieces]
    if len(found) == 1:
        return found[0]
    if not found:
        return blocks.whole([])
    pieces = [piece for block in found for piece in block.pieces]
    return Block(pieces, np.concatenate([block.starts for block in found]), np.concatenate([block.ends for block in found]))


def occurs(separator: str, file: Path) -> bool:
    """Whether a text stands in a file."""
    wanted = separator.encode()
    rest = b""
    with file.open("rb", buffering=0) as handle:
        while chunk := handle.read(blocks.BLOCK):
            if wanted in (window := rest + chunk):
                return True
            rest = window[-len(wanted) + 1 :] if len(wanted) > 1 else b""
    return False
