"""A text as a stream of bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.datasets import bytes as bytes_kind
from pipeline.datasets import tokens

TEXT = "Grüße,\nmy lord. \u2014 Ay.\r\n\0".encode() * 7


@pytest.mark.parametrize(("held_out", "kept"), [(0.1, 90), (0.25, 75), (0.005, 99)])
def test_the_beginning_is_train_and_the_rest_is_validation(make, tmp_path, held_out, kept):
    content = np.random.default_rng(0).integers(0, 256, 100).astype(np.uint8)
    (tmp_path / "a.txt").write_bytes(content.tobytes())
    made = make(bytes_kind, kind="bytes", path=str(tmp_path / "a.txt"), held_out=held_out)
    assert made.facts["tokens"] == {"train": kept, "validation": 100 - kept}
    assert np.array_equal(tokens.read(made, "train"), content[:kept])
    assert np.array_equal(tokens.read(made, "validation"), content[kept:])


def test_no_byte_is_read_as_anything_but_itself(make, tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    made = make(bytes_kind, kind="bytes", path=str(tmp_path / "a.txt"))
    read = [np.asarray(tokens.read(made, split)) for split in ("train", "validation")]
    assert np.concatenate(read).tobytes() == TEXT
    assert {one.dtype for one in read} == {np.dtype("uint8")}
    assert made.facts["vocabulary"] == 256
    assert made.facts["sources"] == {"text": sha256(tmp_path / "a.txt")}


@pytest.mark.parametrize(("content", "held_out"), [(b"", 0.5), (b"a", 0.5), (b"abc", 0.99)])
def test_a_text_too_short_to_split_is_named(make, tmp_path, content, held_out):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt: {len(content)} bytes cannot be split"):
        make(bytes_kind, kind="bytes", path=str(tmp_path / "a.txt"), held_out=held_out)


def test_a_text_that_is_not_there_is_named(make, tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        make(bytes_kind, kind="bytes", path=str(tmp_path / "none.txt"))


def test_tiny_shakespeare(make, data_folder):
    """Its facts as published: 1,115,394 bytes, 65 distinct values."""
    made = make(bytes_kind, kind="bytes", corpus="tinyshakespeare", path=str(data_folder / "tinyshakespeare.txt"))
    train, validation = tokens.read(made, "train"), tokens.read(made, "validation")
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert len(np.union1d(train, validation)) == 65


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_token_ids_take_the_smallest_type_that_holds_them(make_tokens, vocabulary, dtype):
    ids = [0, vocabulary - 1, 1]
    read = tokens.read(make_tokens(ids, vocabulary), "train")
    assert read.dtype == np.dtype(dtype)
    assert read.tolist() == ids


@given(st.lists(st.integers(0, 255)))
def test_every_token_is_shown_and_text_as_itself(ids):
    shown = tokens.text(np.array(ids, dtype=np.uint8), "bytes")
    assert len(shown) == len(ids)
    assert [text for text, i in zip(shown, ids, strict=True) if i < 128] == [bytes([i]).decode() for i in ids if i < 128]
    assert all(text == f"\\x{i:02x}" for text, i in zip(shown, ids, strict=True) if i >= 128)
