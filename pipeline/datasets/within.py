"""How the inside of a long document is encoded, so that its pieces have the tokens, or at least the text, of the uncut one.

Many tokenizers put a space in front of a text or tidy its ends, which must not happen at a cut. What a tokenizer does there is
tried out when it is loaded, with the tokenizer itself and with a variant that puts no space in front. Where neither is right
(BERT and XLM-R, inside a word), nothing may be cut.
"""

import json
from copy import deepcopy
from typing import Any

from tokenizers import Tokenizer

from pipeline.datasets import vocabulary

_WORDS = (("a", " b c"), ("the cat", " sat on 12 mats, and"), ("Hello,", " (World) it's"))
"""Texts cut before a lone space between ASCII characters, as `blocks.cut` does where it can: the tokens have to be the same."""
_LINES = (("a\n", "b c"), ("the cat.\n", "And a dog"))
"""Cut after a line break, which it does elsewhere: no text may come or go, but which tokens it makes may change."""
_ANYWHERE = (*_LINES, ("ab", "cd e"), ("the c", "at sat"), ("a ", " b c"))
"""And between any two characters."""


class Within:
    """The encoders for pieces after the first of a document."""

    def __init__(self, first: Tokenizer, bare: Tokenizer | None) -> None:
        """`first` is what encodes documents, `bare` the same without a space in front where that differs."""
        candidates = [first] if bare is None else [first, bare]
        self.at_words = _passing(candidates, _WORDS, exact=True)
        """For pieces that begin with a lone space; None when these may not be encoded on their own."""
        anywhere = _passing(candidates, _ANYWHERE, exact=False)
        self.anywhere = anywhere is not None
        """Whether a document may be cut between any two characters."""
        self.elsewhere = anywhere or _passing(candidates, _LINES, exact=False)
        """For all other pieces; None when these may not be encoded on their own."""

    @property
    def always(self) -> bool:
        """Whether all pieces may be encoded on their own."""
        return self.anywhere and self.at_words is not None

    def apart(self, before: bytes, piece: bytes) -> bool:
        """Whether a piece may be encoded on its own, and not only together with the one before it."""
        if _begins_word(piece):
            return self.at_words is not None
        return self.elsewhere is not None and (self.anywhere or before.endswith(b"\n"))

    def of(self, piece: bytes) -> Tokenizer:
        """What encodes a piece that stands `apart`."""
        found = self.at_words if _begins_word(piece) else self.elsewhere
        assert found is not None
        return found


def without_prefix(definition: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, as the library writes it, without the space that some put in front of a text."""
    bare = deepcopy({key: value for key, value in definition.items() if key != "model"})
    normalizers, pre = (vocabulary.parts(bare.get(key)) for key in ("normalizer", "pre_tokenizer"))
    for part in pre:
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    if any(part["type"] == "Prepend" for part in normalizers):
        bare["normalizer"] = {"type": "Sequence", "normalizers": [part for part in normalizers if part["type"] != "Prepend"]}
    return {**bare, "model": definition["model"]}


def ordinary(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    """A tokenizer to which the names of special tokens in a text are text like any other.

    The library has a switch for that, which is no part of tokenizer.json. A Unigram model (T5's) has these names among its own
    pieces as well and would find them there: it is given them with a space behind the first character, `< /s>`.
    """
    tokenizer.encode_special_tokens = True
    heads: dict[str, list[str]] = {}
    for name in special:
        if len(name) > 1 and tokenizer.token_to_id(name) in tokenizer.encode(f"a {name} b", add_special_tokens=False).ids:
            heads.setdefault(name[0], []).append(name[1:])
    if not heads:
        return tokenizer
    definition = json.loads(tokenizer.to_str())
    parting = [
        {"type": "Replace", "pattern": {"Regex": f"{_escaped(head)}(?={'|'.join(map(_escaped, tails))})"}, "content": f"{head} "}
        for head, tails in heads.items()
    ]
    definition["normalizer"] = {"type": "Sequence", "normalizers": [*parting, *vocabulary.parts(definition["normalizer"])]}
    parted = Tokenizer.from_str(json.dumps(definition))
    parted.encode_special_tokens = True
    return parted


def _escaped(text: str) -> str:
    """As a pattern of the library's regular expressions (Oniguruma)."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def _begins_word(piece: bytes) -> bool:
    return piece[:1] == b" " and b" " < piece[1:2] < b"\x7f"


def _passing(candidates: list[Tokenizer], probes: tuple[tuple[str, str], ...], exact: bool) -> Tokenizer | None:
    """The first candidate with which the second part of each probe continues the first part."""
    first = candidates[0]
    wholes = [_tokens(first, start + rest, exact) for start, rest in probes]
    tried = [(whole, start, rest) for whole, (start, rest) in zip(wholes, probes, strict=True) if whole]
    if not tried:  # it makes nothing of any of them, which proves nothing
        return None
    good = (
        one for one in candidates if all(whole == _tokens(first, start, exact) + _tokens(one, rest, exact) for whole, start, rest in tried)
    )
    return next(good, None)


def _tokens(tokenizer: Tokenizer, text: str, exact: bool) -> Any:
    """Its tokens; or not `exact`, what these look like together."""
    found = tokenizer.encode(text, add_special_tokens=False)
    return found.ids if exact else "".join(found.tokens)
