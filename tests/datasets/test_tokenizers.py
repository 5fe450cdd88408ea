"""Tokenizers: what documents become, and that the text of every token can be recovered."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from pipeline.artifacts.errors import UserError
from pipeline.datasets import blocks, text, tokens
from pipeline.study.datasets.text import Text

TEXTS = [
    "Once upon a time, there was a girl named Lily. She didn't know 12 things!",
    "Grüße, 語 \U0001f600 — “quoted”\n\n  indented\ttabs",
    " leading and trailing ",
    "\x00\x7f odd \u00a0 spaces\u3000here\r\n",
]


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    return str(path)


def documents(made, split="train"):
    """The ids of each document."""
    ids, offsets = np.asarray(tokens.read(made, split)), tokens.offsets(made, split)
    return [ids[start:end].tolist() for start, end in pairwise(offsets.tolist())]


def save(tokenizer, folder, **config):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return {"kind": "hub", "name": str(folder)}


def word_piece(truncation: int | None = None) -> tokenizers.Tokenizer:
    """As BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "the", ".", "d", "##og"]
    found = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.add_special_tokens(words[:4])
    found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    if truncation:
        found.enable_truncation(truncation)
        found.enable_padding(length=truncation)
    return found


def unigram() -> tokenizers.Tokenizer:
    """As T5's: ▁ for a space, one put in front, the end after."""
    pieces = [("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0), ("▁the", -1.0), ("▁d", -2.0), ("og", -2.0), *((c, -5.0) for c in "abcdefghot")]
    found = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1))
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    found.decoder = decoders.Metaspace()
    found.add_special_tokens(["</s>", "<unk>"])
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return found


@pytest.fixture
def made(make, tmp_path):
    """A dataset of some documents: `made(texts, tokenizer, ...)`, all of them in train."""

    def made(texts, tokenizer, folder="dataset", **settings):
        file = jsonl(tmp_path / f"{folder}.jsonl", texts)
        return make(text, folder, kind="text", files=[file], tokenizer=tokenizer, **{"validation": 0, **settings})

    return made


def test_gpt2_puts_its_end_of_text_after_each_document(made, data_folder):
    """Ids as published: `Hello world` is 15496, 995, and the end of a text is 50256."""
    found = made(["Hello world", *TEXTS], {"kind": "hub", "name": str(data_folder / "gpt2-bpe")})
    first, *others = documents(found)
    assert first == [15496, 995, 50256]
    assert found.facts["vocabulary"] == 50257
    assert tokens.special(found).tolist() == [50256]
    assert tokens.read(found, "train").dtype == np.uint16
    assert [tokens.decode(found, ids) for ids in others] == TEXTS
    assert tokens.text(first, found) == ["Hello", " world", "<|endoftext|>"]
    for ids, written in zip(others, TEXTS, strict=True):
        assert tokens.encode(found, written) == ids[:-1]
    face = tokens.encode(found, "\U0001f600")
    assert "".join(tokens.text(face, found)) == r"\xf0\x9f\x98\x80" and tokens.decode(found, face) == "\U0001f600"


def test_what_a_text_says_ends_no_document(made, data_folder):
    """As `encode_ordinary` of tiktoken: the name of a special token is text. A prompt may hold the token itself."""
    found = made(["a<|endoftext|>b"], {"kind": "hub", "name": str(data_folder / "gpt2-bpe")})
    (ids,) = documents(found)
    assert ids.count(50256) == 1 and ids[-1] == 50256
    assert tokens.decode(found, ids) == "a<|endoftext|>b"
    assert tokens.encode(found, "a<|endoftext|>b") == [64, 50256, 65]


@pytest.mark.parametrize("name", ["stories260K", "stories15M"])
def test_llama_begins_each_document(made, data_folder, name):
    found = made(TEXTS, {"kind": "hub", "name": str(data_folder / name)})
    reference = tokenizers.Tokenizer.from_file(str(data_folder / name / "tokenizer.json"))
    assert documents(found) == [reference.encode(written).ids for written in TEXTS]
    assert all(ids[0] == 1 for ids in documents(found))
    assert [tokens.decode(found, ids) for ids in documents(found)] == [f" {written}" for written in TEXTS]
    assert tokens.special(found).tolist() == [0, 1, 2]
    assert tokens.text([1, 3 + 0xF0, 3 + 0x41], found) == ["<s>", r"\xf0", "A"]


def test_every_id_of_gpt2_stands_for_what_its_decoder_says(made, data_folder):
    found = made(["a"], {"kind": "hub", "name": str(data_folder / "gpt2-bpe")})
    reference = tokenizers.Tokenizer.from_file(str(data_folder / "gpt2-bpe/tokenizer.json"))
    for i in range(0, 50256, 97):
        assert bytes(tokens.decode(found, [i]), "utf-8").decode("unicode_escape" if "\\x" in tokens.decode(found, [i]) else "utf-8")
        assert "\\x" in tokens.decode(found, [i]) or tokens.decode(found, [i]) == reference.decode([i])


def test_word_pieces(made, tmp_path):
    found = made(["The dog playing.", "zzz"], save(word_piece(), tmp_path / "bert"))
    assert documents(found) == [[2, 6, 8, 9, 4, 5, 7, 3], [2, 1, 3]]
    assert tokens.decode(found, documents(found)[0]) == " the dog playing ."
    assert tokens.text([2, 4, 5, 3], found) == ["[CLS]", " play", "ing", "[SEP]"]
    assert tokens.special(found).tolist() == [0, 1, 2, 3]


def test_what_a_tokenizer_would_cut_off_or_fill_up_is_kept(made, tmp_path):
    plain = made(["the " * 50, "dog"], save(word_piece(), tmp_path / "plain"), "plain")
    cut = made(["the " * 50, "dog"], save(word_piece(truncation=8), tmp_path / "cut"), "cut")
    assert documents(cut) == documents(plain)
    assert [len(ids) for ids in documents(cut)] == [52, 4]


def test_pieces_of_sentencepiece(made, tmp_path):
    found = made(["the dog", "the  dog"], save(unigram(), tmp_path / "t5"))
    assert [tokens.decode(found, ids) for ids in documents(found)] == [" the dog", " the  dog"]
    assert [ids[-1] for ids in documents(found)] == [0, 0]


def test_words_that_end_in_a_mark(made, tmp_path):
    vocab = {"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3, "a</w>": 4, "<|end|>": 5}
    found = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b</w>")], end_of_word_suffix="</w>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.decoder = decoders.BPEDecoder()
    made_ = made(["ab b"], save(found, tmp_path / "clip", eos_token={"content": "<|end|>"}))
    assert documents(made_) == [[3, 2, 5]]
    assert tokens.decode(made_, [3, 2, 5]) == "ab b "


def test_ids_without_a_token_and_added_tokens_that_are_text(made, tmp_path):
    found = tokenizers.Tokenizer(models.WordLevel({"<eos>": 0, "one": 3}, unk_token="<eos>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.add_tokens(["Grüße"])
    made_ = made(["one Grüße"], save(found, tmp_path / "holes"))
    assert documents(made_) == [[3, 2, 0]] or documents(made_) == [[3, 4, 0]]
    shown = tokens.text(range(made_.facts["vocabulary"]), made_)
    assert shown[0] == "<eos>" and shown[1] == "<no token 1>" and "Grüße" in shown


@pytest.mark.parametrize(("content", "words"), [
    ("{", "tokenizer.json: not readable as JSON"), ("[]", "is no tokenizer of the tokenizers library"),
    ('{"model": {"type": "none"}}', "tokenizer.json is no tokenizer: "),
])  # fmt: skip
def test_a_file_that_is_no_tokenizer_is_named(made, tmp_path, content, words):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        made(["a"], {"kind": "hub", "name": str(tmp_path / "bad")})
    assert str(caught.value).startswith(str(tmp_path / "bad")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [
    ("[]", "a JSON object is expected"), ("{", "not readable as JSON"),
    ('{"eos_token": {"lstrip": false}}', "eos_token: a text is expected, or a mapping with a text as its content"),
    ('{"eos_token": 5}', "eos_token: a text is expected"), ('{"eos_token": {"content": null}}', None), ('{"eos_token": null}', None),
])  # fmt: skip
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_files_beside_a_tokenizer_that_are_not_as_they_should_be(made, tmp_path, name, content, words):
    tokenizer = save(unigram(), tmp_path / "t5")
    (tmp_path / "t5" / name).write_text(content)
    if words is None:
        assert documents(made(["the dog"], tokenizer))[0][-1] == 0
        return
    with pytest.raises(UserError) as caught:
        made(["the dog"], tokenizer)
    assert str(caught.value).startswith(f"{tmp_path / 't5' / name}: {words}") and "\n" not in str(caught.value)


def test_added_tokens_that_are_none_are_told(made, tmp_path):
    definition = json.loads(unigram().to_str())
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5/tokenizer.json").write_text(json.dumps({**definition, "added_tokens": [{"id": 3}]}))
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer: "):
        made(["the dog"], {"kind": "hub", "name": str(tmp_path / "t5")})


def test_a_tokenizer_that_ends_nothing_is_named(made, tmp_path):
    bare = tokenizers.Tokenizer(models.WordLevel({"one": 0}, unk_token="one"))
    with pytest.raises(UserError, match="puts no special tokens around a text, and names no end-of-text token"):
        made(["a"], save(bare, tmp_path / "bare"))
    with pytest.raises(UserError, match="its end-of-text token '<e>' is not in the vocabulary"):
        made(["a"], save(bare, tmp_path / "bare", eos_token="<e>"))


def test_a_folder_without_a_tokenizer_is_named(made, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: has no tokenizer\.json, and no tokenizer could be made of its other files"):
        made(["a"], {"kind": "hub", "name": str(tmp_path / "empty")})


def test_a_tokenizer_in_an_older_form_is_converted(made, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "the"]))
    (tmp_path / "old/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    found = made(["The playing"], {"kind": "hub", "name": str(tmp_path / "old")})
    assert documents(found) == [[2, 7, 5, 6, 3]]
    assert tokens.decode(found, [2, 7, 5, 6, 3]) == " the playing"
    assert {str(tmp_path / "old/vocab.txt"), str(tmp_path / "old/tokenizer_config.json")} < found.facts["sources"].keys()


def test_a_bpe_that_is_trained_here(make, made, tmp_path):
    texts = [f"the cat {i} sat on the mat, and the rat saw the cat" for i in range(60)] + [TEXTS[1]] * 3
    found = made(texts, {"kind": "bpe", "vocabulary": 300}, validation=0.3)
    assert found.facts["vocabulary"] == 300
    assert tokens.special(found).tolist() == [0]
    everything = documents(found) + documents(found, "validation")
    assert all(ids[-1] == 0 and 0 not in ids[:-1] for ids in everything)
    assert sorted(tokens.decode(found, ids) for ids in everything) == sorted(texts)
    assert " the" in tokens.text(range(300), found)
    again = made(texts, {"kind": "bpe", "vocabulary": 300}, "again", validation=0.3)
    assert {name: entry["sha256"] for name, entry in again.files.items()} == {name: entry["sha256"] for name, entry in found.files.items()}


def test_a_bpe_never_sees_what_is_held_out(make, tmp_path):
    texts = [f"common word {i}" for i in range(100)]
    plain = make(
        text, "plain", kind="text", files=[jsonl(tmp_path / "a.jsonl", texts)], tokenizer={"kind": "bpe", "vocabulary": 280}, validation=0.2
    )
    held_out = {tokens.decode(plain, ids) for ids in documents(plain, "validation")}
    changed = [f"{one} zebra zebra zebra zebra" if one in held_out else one for one in texts]
    other = make(
        text,
        "other",
        kind="text",
        files=[jsonl(tmp_path / "b.jsonl", changed)],
        tokenizer={"kind": "bpe", "vocabulary": 280},
        validation=0.2,
    )
    assert other.files["tokenizer.json"] == plain.files["tokenizer.json"]
    assert other.files["train.npy"] == plain.files["train.npy"]
    assert other.files["validation.npy"] != plain.files["validation.npy"]


def test_a_corpus_with_few_words_gives_a_smaller_vocabulary(made):
    found = made(["ab ab"], {"kind": "bpe", "vocabulary": 5000})
    assert 257 < found.facts["vocabulary"] < 270
    assert tokens.read(found, "train").dtype == np.uint16


@pytest.mark.parametrize("name", ["gpt2-bpe", "stories260K"])
def test_a_long_document_has_the_tokens_of_the_uncut_text(made, data_folder, monkeypatch, name):
    long = " ".join([(data_folder / "tinystories.txt").read_text()[:30_000].replace("<|endoftext|>", ""), *TEXTS])
    tokenizer = {"kind": "hub", "name": str(data_folder / name)}
    whole = made([long], tokenizer, "whole")
    monkeypatch.setattr(blocks, "PIECE", 500)
    cut = made([long], tokenizer, "cut")
    assert documents(cut) == documents(whole)
    assert tokens.decode(cut, documents(cut)[0]).removeprefix(" ") == long


def test_a_stream_is_split_between_words(make, tmp_path, data_folder):
    written = (data_folder / "tinyshakespeare.txt").read_text()[:100_000]
    (tmp_path / "a.txt").write_text(written)
    found = make(
        text, kind="text", files=[str(tmp_path / "a.txt")], tokenizer={"kind": "hub", "name": str(data_folder / "gpt2-bpe")}, test=0.1
    )
    parts = {split: documents(found, split) for split in ("train", "validation", "test")}
    assert all(len(one) == 1 and one[0][-1] == 50256 for one in parts.values())
    parts = {split: tokens.decode(found, one[0]) for split, one in parts.items()}
    assert "".join(parts.values()) == written
    assert 79_900 < len(parts["train"]) <= 80_000
    assert parts["validation"][0] == parts["test"][0] == " "


@pytest.mark.parametrize("shares", [{}, {"validation": 0}, {"test": 0.1}, {"validation": 0, "test": 0.1}])
@pytest.mark.parametrize("tokenizer", ["gpt2-bpe", "bpe"])
def test_no_word_of_a_stream_is_lost(make, tmp_path, data_folder, tokenizer, shares):
    written = (data_folder / "tinyshakespeare.txt").read_text()[-70_000:]
    (tmp_path / "a.txt").write_text(written)
    chosen = {"kind": "bpe", "vocabulary": 300} if tokenizer == "bpe" else {"kind": "hub", "name": str(data_folder / tokenizer)}
    found = make(text, kind="text", files=[str(tmp_path / "a.txt")], tokenizer=chosen, **shares)
    splits = [split for split in ("train", "validation", "test") if split in found.facts["tokens"]]
    assert "".join(tokens.decode(found, tokens.read(found, split)) for split in splits) == written


@pytest.mark.parametrize(("before", "line"), [(b"", 1), (b"one\ntwo \xc3\xa4\n", 3), (b"x" * 70, 1), (b"x\n" * 40, 41)])
def test_what_is_no_utf8_is_named_by_its_line(make, tmp_path, monkeypatch, before, line):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    (tmp_path / "a.txt").write_bytes(before + b"\xc3(" + b" and more text" * 3)
    settings = {"kind": "text", "files": [str(tmp_path / "a.txt")]}
    with pytest.raises(UserError, match=rf"a\.txt:{line}: byte 0xc3 is no UTF-8 text$"):
        make(text, **settings, tokenizer={"kind": "bpe", "vocabulary": 257})
    assert make(text, "bytes", **settings).facts["vocabulary"] == 256


RUN = """
import json, os, sys, time
from pathlib import Path
os.environ["RAYON_NUM_THREADS"] = sys.argv[3]
from pipeline.steps.make_dataset import main
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
import tokenizers
print(len(os.listdir("/proc/self/task")), int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
"""


def run(project, spec, out, threads):
    """Threads that the process had at its end, peak memory in MiB, and the files that were made."""
    settings = json.dumps(Text.model_validate(spec).settings())
    done = subprocess.run(
        [sys.executable, "-c", RUN, settings, str(out), str(threads)], cwd=project, capture_output=True, text=True, check=True
    )
    alive, peak = done.stdout.split()
    return int(alive), float(peak), json.loads((out / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe"])
def test_cores_and_blocks_change_no_byte(make, tmp_path, project, data_folder, monkeypatch, tokenizer):
    (tmp_path / "a.txt").write_text((data_folder / "tinystories.txt").read_text()[:300_000])
    chosen = {"kind": "bpe", "vocabulary": 600} if tokenizer == "bpe" else {"kind": "hub", "name": str(data_folder / "gpt2-bpe")}
    spec = {"kind": "text", "files": [str(tmp_path / "a.txt")], "tokenizer": chosen}
    one, two = (run(project, spec, tmp_path / str(threads), threads) for threads in (1, 2))
    assert one[2] == two[2]
    assert two[0] == one[0] + 1
    monkeypatch.setattr(blocks, "BLOCK", 10_000)
    small = make(text, "small", **spec)
    assert small.files == one[2]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["documents", "stream"])
def test_memory_does_not_grow_with_the_text(tmp_path, project, data_folder, form):
    """Eight times 4 MB of text take no more than a fifth more memory."""
    stories = (data_folder / "tinystories.txt").read_text()
    peaks = []
    for copies in (1, 8):
        file = tmp_path / "a.txt"
        file.write_text((stories if form == "documents" else stories.replace("<|endoftext|>", "")) * copies)
        spec = {"kind": "text", "files": [str(file)], "tokenizer": {"kind": "hub", "name": str(data_folder / "gpt2-bpe")}}
        peaks.append(run(project, spec, tmp_path / "out", 2)[1])
    assert peaks[1] < 1.2 * peaks[0], peaks
