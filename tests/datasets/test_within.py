"""Long documents in pieces, with tokenizers of many shapes; and names of special tokens that stand in a text."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from pipeline.datasets import blocks, lines, text, tokens
from pipeline.datasets.tokenizer import Subwords

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0), ("▁the", -1.0), ("og", -2.0), *((sign, -5.0) for sign in f"{LETTERS}<>/.\n")]
ENGLISH = "the dog and the fox. they ran, and then slept\nfor hours " * 60
SOLID = "abcdefgh" * 400
MIXED = f"{ENGLISH}\n\n  {SOLID}\n{ENGLISH}  {SOLID}"


def unigram(pre, normalizer=None):
    """As T5's, with one pre-tokenizer or another."""
    found = tokenizers.Tokenizer(models.Unigram(PIECES, unk_id=1))
    found.pre_tokenizer = pre
    if normalizer:
        found.normalizer = normalizer
    found.decoder = decoders.Metaspace()
    found.add_special_tokens(["</s>", "<unk>"])
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return found


def words():
    """As BERT's: words, with ## before what goes on with one."""
    vocab = {"[UNK]": 0, "[SEP]": 1, **{sign: 2 + at for at, sign in enumerate(f"{LETTERS}.,")}}
    vocab |= {f"##{sign}": len(vocab) + at for at, sign in enumerate(LETTERS)}
    found = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=10**6))
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.add_special_tokens(["[UNK]", "[SEP]"])
    found.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 1)])
    return found


def space_behind():
    """A space belongs to the word before it, so that no place where documents are cut is right."""
    return unigram(pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Strip())


ALWAYS = pre_tokenizers.Metaspace(prepend_scheme="always")
SHAPES = {
    "T5": unigram(ALWAYS),
    "first": unigram(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "XLM-R": unigram(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), ALWAYS])),
    "DeBERTa": unigram(ALWAYS, normalizers.Strip()),
    "Llama": unigram(None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
    "BERT": words(),
    "no cuts": space_behind(),
}
SHAPES["Llama"].pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")  # nothing


@pytest.fixture
def made(make, tmp_path):
    """A dataset of documents, all in train: `made(texts, tokenizer)`."""

    def made(texts, tokenizer, folder="dataset", **settings):
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        tokenizer.save(str(tmp_path / "tokenizer/tokenizer.json"))
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
        chosen = {"kind": "hub", "name": str(tmp_path / "tokenizer")}
        return make(text, folder, kind="text", files=[str(tmp_path / "a.jsonl")], tokenizer=chosen, **{"validation": 0, **settings})

    return made


def documents(made, split="train"):
    ids, offsets = np.asarray(tokens.read(made, split)), tokens.offsets(made, split)
    return [ids[start:end].tolist() for start, end in pairwise(offsets.tolist())]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("written", [ENGLISH.strip(), MIXED], ids=["words", "mixed"])
def test_a_long_document_keeps_its_text(made, monkeypatch, shape, written):
    """And its tokens, where it has words to be cut between."""
    texts = ["the dog", written, "a", f"{written} end"]
    whole = made(texts, SHAPES[shape], "whole", validation=0.4, seed=1)
    monkeypatch.setattr(blocks, "PIECE", 300)
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    cut = made(texts, SHAPES[shape], "cut", validation=0.4, seed=1)
    for split in ("train", "validation"):
        assert [tokens.decode(cut, ids) for ids in documents(cut, split)] == [tokens.decode(whole, ids) for ids in documents(whole, split)]
        if written != MIXED:
            assert documents(cut, split) == documents(whole, split)


@pytest.mark.parametrize(("shape", "at_words", "elsewhere", "anywhere"), [
    ("T5", "itself", "bare", True), ("XLM-R", "itself", "itself", False), ("DeBERTa", "itself", None, False),
    ("Llama", "bare", "bare", True), ("BERT", "itself", "itself", False), ("no cuts", None, None, False),
])  # fmt: skip
def test_what_is_right_inside_a_document_is_tried_out(shape, at_words, elsewhere, anywhere, capsys):
    found = Subwords(json.loads(SHAPES[shape].to_str()), None, "it")
    names = {id(found.first): "itself", id(None): None}
    assert (names.get(id(found.later.at_words), "bare"), names.get(id(found.later.elsewhere), "bare")) == (at_words, elsewhere)
    assert found.later.anywhere == anywhere and (found.apart is None) == anywhere
    said = capsys.readouterr().err
    assert said == ("" if at_words else "it: it cannot encode a document in pieces, so memory grows with the longest document\n")


@given(st.text("ab \n|", max_size=80), st.integers(1, 30))
def test_pieces_that_are_not_apart_are_joined(written, chunk):
    before, blocks.PIECE = blocks.PIECE, 8
    try:
        content = written.encode()
        chunks = [content[start : start + chunk] for start in range(0, len(content), chunk)]
        plain = [one for block in lines.documents(chunks, "|") for one in zip(*block, strict=True)]
        found = blocks.joined(lines.documents(chunks, "|"), lambda before, piece: piece[:1] == b" ")
        joined = [one for block in found for one in zip(*block, strict=True)]
        assert b"".join(piece for piece, _, _ in joined) == b"".join(piece for piece, _, _ in plain)
        assert all(start or piece[:1] == b" " for piece, start, _ in joined)
        starts = [start or piece[:1] == b" " for piece, start, _ in plain]
        assert len(joined) == sum(starts)
        assert [bool(end) for _, _, end in joined] == [bool(start) for _, start, _ in joined][1:] + [True] * bool(joined)
        whole = [one for block in blocks.joined(lines.documents(chunks, "|"), lambda *_: False) for one in zip(*block, strict=True)]
        assert all(start and end for _, start, end in whole)
    finally:
        blocks.PIECE = before


@pytest.mark.parametrize("shape", ["T5", "XLM-R", "BERT"])
def test_a_name_of_a_special_token_is_text(made, shape):
    name = "[SEP]" if shape == "BERT" else "</s>"
    found = made([f"the {name} dog", f"{name}", "the <unk> dog </"], SHAPES[shape])
    for ids in documents(found):
        assert ids.count(ids[-1]) == 1 and ids[-1] in found.facts["special"]
    if shape != "BERT":  # its model has </s> among its own pieces: a space parts it
        assert [tokens.decode(found, ids) for ids in documents(found)] == [" the < /s> dog", " < /s>", " the < unk> dog </"]
    reference = SHAPES[shape].to_str(pretty=True)
    assert found.file("tokenizer.json").read_text() == reference
