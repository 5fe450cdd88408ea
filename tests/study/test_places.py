"""Folders are looked for where the workflow runs, then in the data folder."""

from pathlib import Path

from pipeline.study.places import folder
from pipeline.study.tokenizer import Tokenizer


def test_here_then_the_data_folder_then_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAEFLOW_DATA", str(tmp_path / "data"))
    assert folder("model") == Path("model")
    (tmp_path / "data" / "model").mkdir(parents=True)
    assert folder("model") == tmp_path / "data" / "model"
    (tmp_path / "model").mkdir()
    assert folder("model") == Path("model")
    monkeypatch.delenv("SAEFLOW_DATA")
    assert folder("other") == Path("other")


def test_a_tokenizer_in_the_data_folder_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("SAEFLOW_DATA", str(tmp_path))
    assert Tokenizer(kind="hub", name="words").sources() == [str(tmp_path / "words" / "tokenizer.json")]
