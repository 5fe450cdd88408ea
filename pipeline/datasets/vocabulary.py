"""What each token of a Hugging Face tokenizer stands for, in bytes.

How a tokenizer writes its pieces is read from its decoder and pre-tokenizer: GPT-2's alphabet of printable characters for
bytes; SentencePiece's ▁ for a space and <0xNN> for a byte; words, with ## (WordPiece) before those that go on; or </w> after
those that end.
"""

import re
from collections.abc import Callable
from typing import Any

from pipeline.artifacts.errors import UserError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def table(definition: dict[str, Any], size: int, special: list[int], name: str) -> tuple[list[bytes], dict[int, str]]:
    """The bytes of each id, and names of those that stand for none: special tokens, and ids without a token. Raises UserError."""
    stands_for = _reading(definition, name)
    vocab = definition["model"]["vocab"]
    tokens = {i: token for token, i in vocab.items()} if isinstance(vocab, dict) else {i: token for i, (token, _) in enumerate(vocab)}
    pieces = [stands_for(tokens[i]) if i in tokens else b"" for i in range(size)]
    names = {i: f"<no token {i}>" for i in range(size) if i not in tokens}
    for added in definition["added_tokens"]:  # they stand in the text as they are written
        pieces[added["id"]] = added["content"].encode()
        tokens[added["id"]] = added["content"]
        names.pop(added["id"], None)
    for i in special:
        pieces[i], names[i] = b"", tokens[i]
    return pieces, names


def parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as the sequence of its parts."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for key, value in part.items() if key != "type")
    return [one for below in inner for one in parts(below)]


def _reading(definition: dict[str, Any], name: str) -> Callable[[str], bytes]:
    """How a piece is read."""
    decoders = {part["type"]: part for part in parts(definition.get("decoder"))}
    before = {part["type"] for part in parts(definition.get("pre_tokenizer"))}
    if "ByteLevel" in decoders or "ByteLevel" in before:
        return _byte_level
    if "Metaspace" in decoders or "ByteFallback" in decoders or _spaces(decoders.get("Replace")):
        return _sentencepiece
    if "BPEDecoder" in decoders:
        suffix = decoders["BPEDecoder"]["suffix"]
        return lambda piece: piece.replace(suffix, " ").encode()
    if not decoders or "WordPiece" in decoders:
        prefix = decoders["WordPiece"]["prefix"] if decoders else None
        return lambda piece: (piece[len(prefix) :] if prefix and piece.startswith(prefix) else f" {piece}").encode()
    raise UserError(f"{name}: how its decoder ({', '.join(decoders)}) makes text of tokens is not known here")


def _spaces(replace: dict[str, Any] | None) -> bool:
    return replace is not None and replace["pattern"] == {"String": "▁"}


def _sentencepiece(piece: str) -> bytes:
    if match := _BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode()


def _byte_level(piece: str) -> bytes:
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return piece.encode()


def _alphabet() -> dict[str, int]:
    """GPT-2's characters: printable Latin-1 stands for itself, the other bytes in order for the characters from 256 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + at): byte for at, byte in enumerate(others)}


_ALPHABET = _alphabet()
