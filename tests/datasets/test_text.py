"""The text kind as a whole, with tokens that are bytes: streams, documents, splits, faults, memory."""

import json
import subprocess
import sys
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.datasets import blocks, text, tokens
from pipeline.study.datasets.text import Text
from pipeline.study.tokenizer import Tokenizer

STREAM = "Grüße,\nmy lord. \u2014 Ay.\r\n\0".encode() * 7
STORIES = [f"Story {i} of {'ä' * (i % 5)} things.\nIt ends." for i in range(200)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def documents(made, split):
    """The documents of a split as bytes, and that all of them end in token 255."""
    ids, offsets = np.asarray(tokens.read(made, split)), tokens.offsets(made, split)
    assert offsets[0] == 0 and offsets[-1] == len(ids) and offsets.dtype == np.int64
    found = [ids[start:end] for start, end in pairwise(offsets.tolist())]
    assert all(one[-1] == 255 and one[:-1].max(initial=0) < 255 for one in found)
    return [bytes(one[:-1].astype(np.uint8)) for one in found]


@pytest.mark.parametrize(("validation", "kept"), [(0.1, 90), (0.25, 75), (0.005, 99)])
def test_the_beginning_of_a_stream_is_train_and_the_rest_is_validation(make, tmp_path, validation, kept):
    content = np.random.default_rng(0).integers(0, 256, 100).astype(np.uint8)
    (tmp_path / "a.txt").write_bytes(content.tobytes())
    made = make(text, kind="text", files=[str(tmp_path / "a.txt")], validation=validation)
    assert made.facts["tokens"] == {"train": kept, "validation": 100 - kept}
    assert made.facts["documents"] == {"train": 1, "validation": 1}
    assert np.array_equal(tokens.read(made, "train"), content[:kept])
    assert np.array_equal(tokens.read(made, "validation"), content[kept:])
    assert tokens.offsets(made, "train").tolist() == [0, kept]


def test_no_byte_is_read_as_anything_but_itself(make, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 17)
    monkeypatch.setattr(blocks, "PIECE", 5)
    (tmp_path / "a.txt").write_bytes(STREAM)
    made = make(text, kind="text", files=[str(tmp_path / "a.txt")], test=0.2)
    read = [np.asarray(tokens.read(made, split)) for split in ("train", "validation", "test")]
    assert np.concatenate(read).tobytes() == STREAM
    assert {one.dtype for one in read} == {np.dtype("uint8")}
    assert (made.facts["vocabulary"], made.facts["special"], made.facts["tokenizer"]) == (256, [], "bytes")
    assert made.facts["sources"] == {str(tmp_path / "a.txt"): sha256(tmp_path / "a.txt")}


@pytest.mark.parametrize(("content", "validation"), [(b"", 0.5), (b"a", 0.5), (b"abc", 0.99), (b"abc", 0.01)])
def test_a_stream_too_short_to_split_is_named(make, tmp_path, content, validation):
    (tmp_path / "a.txt").write_bytes(content)
    if content == b"abc" and validation == 0.01:
        assert make(text, kind="text", files=[str(tmp_path / "a.txt")], validation=validation).facts["tokens"] == {
            "train": 2,
            "validation": 1,
        }
        return
    with pytest.raises(UserError, match=rf"a\.txt: {len(content)} bytes cannot be split, {validation:g} for validation"):
        make(text, kind="text", files=[str(tmp_path / "a.txt")], validation=validation)


def test_tiny_shakespeare(make, data_folder):
    """Its facts as published: 1,115,394 bytes, 65 distinct values."""
    made = make(text, kind="text", corpus="tinyshakespeare", path=str(data_folder / "tinyshakespeare.txt"))
    train, validation = tokens.read(made, "train"), tokens.read(made, "validation")
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert len(np.union1d(train, validation)) == 65


def test_tiny_stories(make, data_folder):
    made = make(text, kind="text", corpus="tinystories", path=str(data_folder / "tinystories.txt"), documents=300)
    assert sum(made.facts["documents"].values()) == 300
    stories = (data_folder / "tinystories.txt").read_bytes().split(b"<|endoftext|>")[:300]
    stories = [one.removeprefix(b"\n").removesuffix(b"\n") for one in stories]
    assert sorted(documents(made, "train") + documents(made, "validation")) == sorted(stories)


@pytest.fixture
def in_every_form(tmp_path):
    """The same documents in each form, as settings."""
    texts = [*STORIES, ""]  # an empty one is left out everywhere
    (tmp_path / "a.txt").write_bytes("\n<|endoftext|>\n".join(texts).encode())
    (tmp_path / "b.txt").write_bytes("\n====".join(texts).encode())
    pq.write_table(pa.table({"body": texts, "n": range(len(texts))}), tmp_path / "a.parquet", row_group_size=7)
    half = len(texts) // 2
    jsonl(tmp_path / "0.jsonl", [{"text": one} for one in texts[:half]])
    jsonl(tmp_path / "1.jsonl", [{"text": one} for one in texts[half:]])
    (tmp_path / "large").mkdir()
    large = pa.array(texts, pa.large_string())
    pq.write_table(pa.table({"text": large.dictionary_encode()}), tmp_path / "large/a.parquet")
    return {
        "txt": {"files": [str(tmp_path / "a.txt")]},
        "other separator": {"files": [str(tmp_path / "b.txt")], "separator": "===="},
        "parquet": {"files": [str(tmp_path / "a.parquet")], "column": "body"},
        "dictionary": {"files": [str(tmp_path / "large/*.parquet")]},
        "jsonl": {"files": [str(tmp_path / "?.jsonl")]},
    }


def test_every_form_gives_the_same_tokens(make, in_every_form, monkeypatch):
    made = {name: make(text, name, kind="text", test=0.1, **settings) for name, settings in in_every_form.items()}
    monkeypatch.setattr(blocks, "BLOCK", 100)
    made |= {f"{name}, small": make(text, f"{name}-small", kind="text", test=0.1, **settings) for name, settings in in_every_form.items()}
    first = made["txt"]
    for one in made.values():
        assert {name: entry["sha256"] for name, entry in one.files.items()} == {
            name: entry["sha256"] for name, entry in first.files.items()
        }
    found = [documents(first, split) for split in ("train", "validation", "test")]
    assert sorted(chain(*found)) == sorted(story.encode() for story in STORIES)
    assert all(found)
    order = {story.encode(): at for at, story in enumerate(STORIES)}
    assert all(at == sorted(at) for at in ([order[one] for one in split] for split in found))


def test_documents_keep_their_split_when_others_are_appended(make, tmp_path):
    few = make(text, "few", kind="text", files=[jsonl(tmp_path / "few.jsonl", [{"text": one} for one in STORIES[:90]])], seed=3)
    many = make(text, "many", kind="text", files=[jsonl(tmp_path / "many.jsonl", [{"text": one} for one in STORIES])], seed=3)
    first = make(text, "first", kind="text", files=[str(tmp_path / "many.jsonl")], seed=3, documents=90)
    for split in ("train", "validation"):
        count = few.facts["documents"][split]
        assert documents(few, split) == documents(many, split)[:count] == documents(first, split)


def test_files_end_documents_and_files_are_read_in_order(make, tmp_path):
    for name, content in (("b.txt", "three"), ("a.txt", "one<|endoftext|>two")):
        (tmp_path / name).write_text(content)
    made = make(text, kind="text", files=[str(tmp_path / "*.txt"), str(tmp_path / "b.txt")], validation=0)
    assert documents(made, "train") == [b"one", b"two", b"three"]
    made = make(text, "whole", kind="text", files=[str(tmp_path / "*.txt")], validation=0, separator=None)
    assert documents(made, "train") == [b"one<|endoftext|>two", b"three"]
    assert list(made.facts["sources"]) == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]


BAD = {
    "not JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', ":3: not JSON"),
    "not an object": ("a.jsonl", b'{"text": "a"}\n["text"]\n', ":2: a JSON object is expected, not a list"),
    "no such key": ("a.jsonl", b'{"body": "a"}\n', ":1: has no 'text' (keys: body); another is named under column"),
    "a number": ("a.jsonl", b'{"text": 3}\n', ":1: 'text' is a number, and text is expected"),
    "a null": ("a.jsonl", b'{"text": null}\n', ":1: 'text' is a null, and text is expected"),
    "half a pair": ("a.jsonl", b'{"text": "\\ud83d"}\n', ":1: 'text' holds half of a surrogate pair"),
    "not UTF-8": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2: not JSON"),
    "no parquet": ("a.parquet", b"hello", ": not readable as .parquet"),
    "broken parquet": ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", ": not readable as .parquet"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_what_is_wrong_in_a_file_is_named_by_its_line(make, tmp_path, case):
    name, content, words = case
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        make(text, kind="text", files=[str(tmp_path / name)])
    assert str(caught.value).startswith(f"{tmp_path / name}{words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([f"{i}" for i in range(200)] + [None]), ": row 201: column 'text' is empty (null)"),
        (pa.array([1, 2]), ": row 1: column 'text' is int64, and text is expected"),
        (pa.array([b"a"]), ": row 1: column 'text' is binary, and text is expected"),
        (pa.array([b"a", b"b\xff"]).view(pa.string()), ": row 2: column 'text' is no UTF-8 text"),
    ],
)
def test_what_is_wrong_in_parquet_is_named_by_its_row(make, tmp_path, column, words):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), file)
    with pytest.raises(UserError) as caught:
        make(text, kind="text", files=[str(file)])
    assert str(caught.value).startswith(f"{file}{words}")
    with pytest.raises(UserError, match=r"has no column 'body' \(columns: text\)"):
        make(text, kind="text", files=[str(file)], column="body")


def test_a_split_without_documents_is_named(make, tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    with pytest.raises(UserError, match=r"a\.jsonl: of 1 document none falls to validation, whose share is 0\.1; more documents"):
        make(text, kind="text", files=[file])
    with pytest.raises(UserError, match="of 0 documents none falls to train"):
        make(text, kind="text", files=[jsonl(tmp_path / "b.jsonl", [{"text": ""}])])


def test_a_file_that_is_not_there_is_named(make, tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        make(text, kind="text", files=[str(tmp_path / "none.txt")])


def test_settings_that_cannot_be_are_refused_before_a_file_is_read(tmp_path):
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "empty").mkdir()
    good = {"files": ["a.txt"]}
    url = {"url": "https://example.org/a.txt", "sha256": "0" * 64}
    for settings, words in (
        ({}, r"exactly one of corpus \(tinyshakespeare, tinystories\), files, url and hub is needed; none is given"),
        ({**good, "hub": "a/b"}, "found files and hub"),
        ({**good, "path": "a.txt"}, "path: goes with corpus; name your own files under files"),
        ({**good, "sha256": "0" * 64}, "sha256: goes with url"),
        ({**good, "subset": "en"}, "subset: goes with hub"),
        ({**good, "hub_split": "test"}, "hub_split: goes with hub"),
        ({"url": url["url"]}, "sha256: is missing"),
        ({**url, "sha256": "abc"}, "64 digits of 0-9 and a-f"),
        ({**url, "url": "ftp://x/a.txt"}, "https://"),
        ({**url, "url": "https://x/a.zip"}, r"end in \.txt, \.jsonl, \.parquet"),
        ({"files": [str(tmp_path / "*.txt")]}, "no file matches"),
        ({"files": [str(tmp_path / "*")]}, r"the name of .*a\.md has to end in"),
        ({"files": ["a.md"]}, "the file's name has to end in"),
        ({"files": []}, "at least 1"),
        ({"corpus": "tinystories", "separator": None}, r"separator: tinystories has its own, <\|endoftext\|>"),
        ({"corpus": "tinyshakespeare", "separator": "--"}, "separator: tinyshakespeare has its own, null"),
        ({"hub": "./nowhere"}, "hub: no such folder: './nowhere'"),
        ({**good, "validation": 0.5, "test": 0.5}, "validation: with test it takes 1 of the documents"),
        ({**good, "separator": ""}, "at least 1"),
        ({**good, "tokenizer": {"kind": "hub"}}, "name: is missing"),
        ({**good, "tokenizer": {"kind": "bpe"}}, "vocabulary: is missing"),
        ({**good, "tokenizer": {"kind": "bpe", "vocabulary": 256}}, "greater than or equal to 257"),
        ({**good, "tokenizer": {"kind": "bytes", "vocabulary": 300}}, "vocabulary: is of tokenizers of kind bpe, not bytes"),
        ({**good, "tokenizer": {"kind": "hub", "name": "./nowhere"}}, "name: no such folder: './nowhere'"),
        ({**good, "tokenizer": {"kind": "hub", "name": str(tmp_path), "revision": "main"}}, "revision: is of tokenizers on the hub"),
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=words):
            Text.model_validate({"kind": "text", **settings})


def test_what_the_workflow_waits_for_are_the_users_files(tmp_path):
    for name in ("b.txt", "a.txt", "set/train.jsonl", "set/.hidden/x", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    spec = Text.model_validate(
        {"kind": "text", "files": [str(tmp_path / "*.txt"), "later.txt"], "tokenizer": {"kind": "hub", "name": str(tmp_path / "tokenizer")}}
    )
    names = ["a.txt", "b.txt", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    assert sorted(spec.sources()) == sorted([*(str(tmp_path / name) for name in names), "later.txt"])
    assert Text.model_validate({"kind": "text", "hub": str(tmp_path / "set")}).sources() == [str(tmp_path / "set/train.jsonl")]
    assert Text.model_validate({"kind": "text", "hub": "owner/name"}).sources() == []
    assert Text.model_validate({"kind": "text", "corpus": "tinystories", "path": "s.txt"}).sources() == ["s.txt"]


def test_threads_are_no_part_of_what_is_made():
    one, many = (Text.model_validate({"kind": "text", "files": ["a.txt"], "threads": threads}) for threads in (1, 8))
    assert one.settings() == many.settings()
    assert many.cores() == 1  # bytes need no more
    assert many.model_copy(update={"tokenizer": Tokenizer(kind="bpe", vocabulary=300)}).cores() == 8


def test_splits_are_those_with_a_share():
    spec = {"kind": "text", "files": ["a.txt"]}
    assert Text.model_validate(spec).splits() == ("train", "validation")
    assert Text.model_validate({**spec, "validation": 0, "test": 0.1}).splits() == ("train", "test")


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_token_ids_take_the_smallest_type_that_holds_them(make_tokens, vocabulary, dtype):
    made = make_tokens([0, vocabulary - 1, 1], vocabulary)
    read = tokens.read(made, "train")
    assert read.dtype == np.dtype(dtype)
    assert read.tolist() == [0, vocabulary - 1, 1]
    np.save(made.folder / "saved.npy", np.array([0, vocabulary - 1, 1], dtype))
    assert (made.folder / "saved.npy").read_bytes() == made.file("train.npy").read_bytes()


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    """Two documents as bytes, one for each test of what tokens are shown as."""
    from pipeline.artifacts.manifest import MANIFEST, Artifact
    from pipeline.artifacts.publishing import publishing

    folder = tmp_path_factory.mktemp("bytes")
    spec = Text.model_validate({"kind": "text", "files": [jsonl(folder / "a.jsonl", [{"text": "one"}])], "validation": 0})
    with publishing(folder / "made", "dataset", spec.settings(), {}) as draft:
        text.write(spec, draft)
    return Artifact.open(folder / "made" / MANIFEST)


@given(st.lists(st.integers(0, 254)))
def test_every_byte_is_shown_and_text_as_itself(of_bytes, ids):
    shown = tokens.text(np.array(ids, dtype=np.uint8), of_bytes)
    assert [one for one, i in zip(shown, ids, strict=True) if i < 128] == [bytes([i]).decode() for i in ids if i < 128]
    assert all(one == f"\\x{i:02x}" for one, i in zip(shown, ids, strict=True) if i >= 128)
    assert tokens.decode(of_bytes, ids) == bytes(ids).decode("utf-8", "backslashreplace")


@given(st.text())
def test_text_comes_back_from_its_bytes(of_bytes, written):
    ids = tokens.encode(of_bytes, written)
    assert ids == list(written.encode())
    assert tokens.decode(of_bytes, [*ids, 255]) == written


def test_a_document_with_the_byte_that_ends_documents_is_told(make, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"one<|endoftext|>\nand\nt\xffwo<|endoftext|>three")
    for block in (blocks.BLOCK, 5):
        monkeypatch.setattr(blocks, "BLOCK", block)
        with pytest.raises(UserError, match=r"a\.txt:3: byte 0xff, with which documents of bytes end; UTF-8 text never holds it$"):
            make(text, kind="text", files=[str(tmp_path / "a.txt")], validation=0)


def test_the_end_of_a_document_is_shown_by_name(of_bytes):
    assert tokens.text([111, 255], of_bytes) == ["o", "<|endoftext|>"]
    assert tokens.special(of_bytes).tolist() == [255]


MEASURE = """
import json, sys
from pathlib import Path
from pipeline.steps.make_dataset import main
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.parametrize("form", ["stream.txt", "documents.txt", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_text(tmp_path, project, form):
    """Eight times 8 MB of text take no more than 20 MiB more."""
    story = "Once upon a time there was a little girl. She liked to play outside. " * 12
    peaks = []
    for copies in (10_000, 80_000):
        file = tmp_path / f"{copies}-{form}"
        if form.endswith("jsonl"):
            line = json.dumps({"text": story}) + "\n"
            file.write_text(line * copies)
        elif form.endswith("parquet"):
            with pq.ParquetWriter(file, pa.schema({"text": pa.string()})) as writer:
                for _ in range(copies // 1000):
                    writer.write_table(pa.table({"text": [f"{i}{story}" for i in range(1000)]}))
        else:
            file.write_text((story + "<|endoftext|>" * (form == "documents.txt")) * copies)
        spec = Text.model_validate({"kind": "text", "files": [str(file)]}).settings()
        command = [sys.executable, "-c", MEASURE, json.dumps(spec), str(tmp_path / "out")]
        run = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
        peaks.append(float(run.stdout))
        file.unlink()
    assert peaks[1] - peaks[0] < 20, peaks
