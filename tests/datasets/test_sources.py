"""Files as they come: names with odd signs, files named twice, byte order marks, files that may not be read."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.errors import UserError
from pipeline.datasets import text, tokens
from pipeline.study.datasets.text import Text, expand

MARK = b"\xef\xbb\xbf"
BPE = {"kind": "bpe", "vocabulary": 257}


def written(made, split="train"):
    """What a split holds, each document with | behind it."""
    return tokens.decode(made, np.where(np.asarray(tokens.read(made, split)) == 255, ord("|"), tokens.read(made, split)))


def test_a_name_with_the_signs_of_a_glob_is_taken_as_it_is(make, tmp_path):
    for name in ("x[1].txt", "x1.txt", "what?.txt", "whatx.txt"):
        (tmp_path / name).write_text(name * 3)
    assert expand(str(tmp_path / "x[1].txt")) == [str(tmp_path / "x[1].txt")]
    assert expand(str(tmp_path / "what?.txt")) == [str(tmp_path / "what?.txt")]
    assert expand(str(tmp_path / "x[0-9].txt")) == [str(tmp_path / "x1.txt")]
    made = make(text, kind="text", files=[str(tmp_path / "x[1].txt")], validation=0)
    assert written(made) == "x[1].txt" * 3


def test_a_file_is_read_once_however_it_is_written(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(name)
    files = ["b.txt", "./b.txt", "*.txt", "below/../a.txt", str(tmp_path / "b.txt")]
    assert Text.model_validate({"kind": "text", "files": files}).paths() == ["b.txt", "a.txt"]
    assert written(make(text, kind="text", files=files, validation=0)) == "b.txt|a.txt|"
    os.symlink("below", "link")
    assert Text.model_validate({"kind": "text", "files": ["link/../a.txt", "below/a.txt"]}).paths() == ["link/../a.txt", "below/a.txt"]


@pytest.mark.parametrize("tokenizer", [{"kind": "bytes"}, BPE], ids=["bytes", "bpe"])
def test_a_byte_order_mark_is_no_text(make, tmp_path, tokenizer):
    """At the beginning of a file, that is: elsewhere it is a character."""
    stream = MARK + b"one two three" + MARK + b" four five"
    (tmp_path / "a.txt").write_bytes(stream)
    made = make(text, "stream", kind="text", files=[str(tmp_path / "a.txt")], tokenizer=tokenizer, validation=0.25)
    parts = [tokens.decode(made, tokens.read(made, split)) for split in ("train", "validation")]
    assert "".join(parts).encode() == stream[3:] and all(parts)
    (tmp_path / "b.txt").write_bytes(MARK + b"one<|endoftext|>" + MARK + b"two")
    for name in ("c.txt", "d.txt"):
        (tmp_path / name).write_bytes(MARK if name == "c.txt" else "\ufec0".encode())
    made = make(text, "documents", kind="text", files=[str(tmp_path / f"{name}.txt") for name in "bcd"], tokenizer=tokenizer, validation=0)
    ends = [tokens.decode(made, tokens.read(made, "train")[start:end]) for start, end in zip(*_bounds(made), strict=True)]
    assert ends == ["one", "\ufefftwo", "\ufec0"]


def _bounds(made):
    found = tokens.offsets(made, "train").tolist()
    return found[:-1], found[1:]


def test_a_file_of_a_byte_order_mark_alone_is_empty(make, tmp_path):
    (tmp_path / "a.txt").write_bytes(MARK)
    with pytest.raises(UserError, match="cannot be split"):
        make(text, kind="text", files=[str(tmp_path / "a.txt")])


@pytest.mark.parametrize("settings", [{}, {"separator": None}, {"validation": 0, "tokenizer": BPE}])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_may_not_be_read_is_one_line(make, tmp_path, monkeypatch, name, settings):
    """Tests may run as root, who may read everything: so the system's answer is given here."""
    file = tmp_path / name
    file.write_text('{"text": "some text"}\n' * 9)
    opened = Path.open

    def refused(self, *args, **settings):
        if self == file:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **settings)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=rf"{name}: Permission denied$"):
        make(text, kind="text", files=[str(file)], **settings)
