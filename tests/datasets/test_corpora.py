"""Where a text with a pinned content is looked for, and that no other content is taken for it."""

import hashlib
from types import SimpleNamespace

import pooch
import pytest
from requests.exceptions import ConnectionError

from pipeline.artifacts.errors import UserError
from pipeline.datasets import corpora
from pipeline.study.corpora import CORPORA, Corpus

TEXT = b"To be, or not to be"
CORPUS = Corpus(
    file="hamlet.txt", sha256=hashlib.sha256(TEXT).hexdigest(), package=("hamlet", "hamlet/text.txt"), url="https://example.org/h"
)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Each place a text can be, as a file that does not exist yet; the web gives it only when `web` does."""
    found = SimpleNamespace(
        path=tmp_path / "mine.txt", data=tmp_path / "data/hamlet.txt", package=tmp_path / "site/text.txt", web=tmp_path / "cache/h.txt"
    )
    for file in vars(found).values():
        file.parent.mkdir(exist_ok=True)
    monkeypatch.setenv("SAEFLOW_DATA", str(found.data.parent))

    def distribution(name):
        if name != "hamlet" or not found.package.exists():
            raise corpora.importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(locate_file=lambda file: {"hamlet/text.txt": found.package}[file])

    def retrieve(url, known_hash, **_):
        assert (url, known_hash) == (CORPUS.url, f"sha256:{CORPUS.sha256}")
        if not found.web.exists():
            raise ConnectionError("no network")
        return str(found.web)

    monkeypatch.setattr(corpora.importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return found


def test_the_first_place_that_has_it_counts(places):
    """The study's path, the data folder, an installed package, the web, in this order."""
    for name in ("web", "package", "data", "path"):
        getattr(places, name).write_bytes(TEXT)
        assert corpora.find(CORPUS, str(places.path) if name == "path" else None) == getattr(places, name)


@pytest.mark.parametrize("name", ["path", "data", "package", "web"])
def test_another_content_is_refused_wherever_it_is(places, name):
    getattr(places, name).write_bytes(TEXT + b".")
    with pytest.raises(UserError) as caught:
        corpora.find(CORPUS, str(places.path) if name == "path" else None)
    message = str(caught.value)
    assert message.startswith(str(getattr(places, name)))
    assert CORPUS.sha256 in message
    assert hashlib.sha256(TEXT + b".").hexdigest() in message


def test_a_path_that_is_named_is_not_replaced_by_another_place(places):
    places.data.write_bytes(TEXT)
    with pytest.raises(UserError, match=r"mine\.txt: no such file"):
        corpora.find(CORPUS, str(places.path))


def test_when_it_is_nowhere_the_message_says_what_to_do(places, monkeypatch):
    with pytest.raises(UserError) as caught:
        corpora.find(CORPUS, None)
    for word in ("hamlet.txt", CORPUS.url, "SAEFLOW_DATA", CORPUS.sha256):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("SAEFLOW_DATA")
    with pytest.raises(UserError, match="SAEFLOW_DATA"):
        corpora.find(CORPUS.model_copy(update={"url": None, "package": None}), None)


def test_the_place_it_came_from_is_said(places, capsys):
    places.data.write_bytes(TEXT)
    corpora.find(CORPUS, None)
    assert capsys.readouterr().err == f"hamlet.txt: {places.data}, from the data folder (data_dir, SAEFLOW_DATA)\n"


def test_the_data_folder_has_the_pinned_text(data_folder):
    if not (data_folder / "tinyshakespeare.txt").exists():
        pytest.skip("the data folder has no tinyshakespeare.txt")
    assert corpora.find(CORPORA["tinyshakespeare"], None) == data_folder / "tinyshakespeare.txt"


def test_stories_that_are_nowhere_can_be_had_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFLOW_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"tinystories\.txt was not found; put it .* SAEFLOW_DATA .*; for .* 'hub: roneneldan/TinyStories'"):
        corpora.find(CORPORA["tinystories"], None)
