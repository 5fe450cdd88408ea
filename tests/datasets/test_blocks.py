"""Documents found in a text that comes in chunks: the same ones, in the same pieces, however it comes."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets import blocks, lines, splits

SEPARATOR = "<|endoftext|>"


def by_hand(text: bytes, separator: bytes) -> list[bytes]:
    """What lies between separators, a line break on either side of one belonging to it; no empty ones."""
    parts = text.split(separator)
    for at, part in enumerate(parts):
        if at:
            part = re.sub(rb"\A\r?\n", b"", part)
        if at < len(parts) - 1:
            part = re.sub(rb"\r?\n\Z", b"", part)
        parts[at] = part
    return [part for part in parts if part]


def pieces(text: bytes, separator: str | None, chunk: int) -> list[tuple[bytes, bool, bool]]:
    """All pieces with whether each begins and ends a document, of a text that comes `chunk` bytes at a time."""
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    found = list(lines.documents(iter(chunks), separator))
    return [one for block in found for one in zip(block.pieces, block.starts.tolist(), block.ends.tolist(), strict=True)]


def together(found: list[tuple[bytes, bool, bool]]) -> list[bytes]:
    """The documents that pieces make."""
    documents: list[bytes] = []
    open_ = False
    for piece, start, end in found:
        assert start != open_
        documents = [*documents, piece] if start else [*documents[:-1], documents[-1] + piece]
        open_ = not end
    assert not open_
    return documents


WORDS = st.sampled_from(
    ["a", "bc", " ", "\n", "\r\n", "ä", "語", "<", "<|endoftext", SEPARATOR, f"\n{SEPARATOR}\n", f"\r\n{SEPARATOR}", "  "]
)


@given(st.lists(WORDS, max_size=40).map("".join), st.integers(1, 60), st.sampled_from([5, 16, 2**16]))
def test_chunks_change_neither_documents_nor_pieces(text, chunk, piece):
    before, blocks.PIECE = blocks.PIECE, piece
    try:
        content = text.encode()
        found = pieces(content, SEPARATOR, chunk)
        assert together(found) == by_hand(content, SEPARATOR.encode())
        assert found == pieces(content, SEPARATOR, 10**6)
        assert all(len(one) <= piece for one, _, _ in found)
        cut = [list(blocks.cut_up(document)) for document in by_hand(content, SEPARATOR.encode())]
        assert [one for one, _, _ in found] == [one for document in cut for one in document]
        for one, _, _ in found:
            one.decode()  # no character is cut in two
    finally:
        blocks.PIECE = before


def test_without_a_separator_a_text_is_one_document():
    text = b"\n<|endoftext|>\n"
    assert pieces(text, None, 3) == [(text, True, True)]
    assert pieces(b"", None, 3) == []


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        (b"", []),
        (b"one", [b"one"]),
        (b"one\n", [b"one\n"]),
        (b"one\n<|endoftext|>\ntwo\n<|endoftext|>\n", [b"one", b"two"]),
        (b"<|endoftext|>one<|endoftext|><|endoftext|>\n\n<|endoftext|>two", [b"one", b"two"]),
        (b"\none\r\n<|endoftext|>\r\n\n two", [b"\none", b"\n two"]),
        (b" \n<|endoftext|>x", [b" ", b"x"]),
    ],
)
def test_documents_of_texts(text, documents):
    assert together(pieces(text, SEPARATOR, 4)) == documents


def test_where_a_long_document_is_cut(monkeypatch):
    monkeypatch.setattr(blocks, "PIECE", 10)
    assert list(blocks.cut_up(b"aaaaaa bb cc ddddd")) == [b"aaaaaa", b" bb cc", b" ddddd"]
    assert list(blocks.cut_up(b"aaaaaa\n\nbbbbbbb")) == [b"aaaaaa\n\n", b"bbbbbbb"]
    assert list(blocks.cut_up(b"aaaaaa  bbbbbb")) == [b"aaaaaa  b", b"bbbbb"]  # not in a run of spaces
    assert [piece.decode() for piece in blocks.cut_up("語語語語語".encode())] == ["語語語", "語語"]
    assert list(blocks.cut_up(bytes([0x80] * 12))) == [bytes([0x80] * 9), bytes([0x80] * 3)]


def test_a_separator_is_found_across_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    for before in range(20):
        (tmp_path / "a.txt").write_text("x" * before + SEPARATOR + "y")
        assert lines.occurs(SEPARATOR, tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("<|endoftext|" * 4)
    assert not lines.occurs(SEPARATOR, tmp_path / "a.txt")
    assert lines.occurs("|", tmp_path / "a.txt")


def splitmix64(x: int) -> int:
    """As published, in plain integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_split_of_a_document_is_a_hash_of_its_number():
    from pipeline.artifacts.seeds import derive

    found = splits.of_documents(np.arange(1000), 7, 0.25, 0.1)
    shares = [splitmix64((n * 0x9E3779B97F4A7C15 + derive(7, "dataset", "splits")) % 2**64) / 2**64 for n in range(1000)]
    assert found.tolist() == [1 if share < 0.25 else 2 if share < 0.35 else 0 for share in shares]
    assert np.array_equal(splits.of_documents(np.arange(500, 1000), 7, 0.25, 0.1), found[500:])
    assert not np.array_equal(splits.of_documents(np.arange(1000), 8, 0.25, 0.1), found)


def test_shares_are_kept_and_a_larger_one_only_takes_from_train():
    many = np.arange(200_000)
    found = splits.of_documents(many, 0, 0.1, 0.05)
    for split, share in ((0, 0.85), (1, 0.1), (2, 0.05)):
        assert np.mean(found == split) == pytest.approx(share, abs=0.003)
    assert set(splits.of_documents(many, 0, 0.2, 0.05)[found == 1]) == {1}
    assert splits.of_documents(many, 0, 0.0, 0.0).max() == 0


@pytest.mark.parametrize(("length", "validation", "test", "ends"), [
    (10, 0.1, 0.0, [9, 10]), (100, 0.25, 0.0, [75, 100]), (100, 0.005, 0.0, [99, 100]), (1_115_394, 0.1, 0.0, [1_003_854, 1_115_394]),
    (1_115_394, 0.02, 0.0, [1_093_086, 1_115_394]), (10, 0.1, 0.1, [8, 9]), (10, 0.0, 0.3, [7, 7]),
])  # fmt: skip
def test_a_stream_is_cut_at_its_shares(length, validation, test, ends):
    assert splits.of_stream(length, validation, test) == ends
