"""Texts as tokens: files, a URL, a dataset of the Hugging Face hub, or a corpus with a pinned content."""

import glob
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.study import places
from pipeline.study.base import Count, Seed, Share
from pipeline.study.corpora import CORPORA, END_OF_TEXT
from pipeline.study.dataset import SPLITS, Dataset
from pipeline.study.tokenizer import Tokenizer, is_path

FORMATS = (".txt", ".jsonl", ".parquet")
SOURCES = ("corpus", "files", "url", "hub")


def expand(pattern: str) -> list[str]:
    """The files that a path or glob means, sorted; a plain path stands for itself, there or not, and so does one that is
    there, whatever signs are in its name."""
    if not glob.has_magic(pattern) or Path(pattern).is_file():
        return [pattern]
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
    return sorted(file for file in found if Path(file).is_file())


def _readable(pattern: str) -> str:
    if not (found := expand(pattern)):
        raise ValueError("no file matches")
    for file in found:
        if not file.endswith(FORMATS):
            name = "the file's name" if file == pattern else f"the name of {file}"
            raise ValueError(f"{name} has to end in {', '.join(FORMATS)}")
    return pattern


def _fetchable(url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise ValueError("https://... is expected")
    if not PurePosixPath(url.partition("?")[0]).name.endswith(FORMATS):
        raise ValueError(f"the address has to end in {', '.join(FORMATS)}")
    return url


def _digest(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("64 digits of 0-9 and a-f are expected")
    return value


class Text(Dataset):
    """Documents as tokens; or one stream, whose beginning is the train split and whose end is the others.

    A single .txt file without a separator in it is one stream. In everything else the splits are made of whole documents:
    a document's split depends on `seed` and its number alone, so it stays when documents are appended.

    A byte order mark at the beginning of a .txt is left out. What a document says is text: the name of a special token in it,
    such as <|endoftext|> or <s>, does not become that token. (Between the documents of a .txt stands its `separator`.)
    """

    form: ClassVar[str] = "tokens"

    kind: Literal["text"]
    corpus: Literal["tinyshakespeare", "tinystories"] | None = None
    """A text with a pinned hash, looked for at `path`, in the data folder, in an installed package, then on the web."""
    path: str | None = None
    """With `corpus`: a copy of that text, checked against its hash."""
    files: Annotated[list[Annotated[str, AfterValidator(_readable)]], Field(min_length=1)] | None = None
    """Files of your own, .txt, .jsonl or .parquet, or globs such as data/**/*.jsonl; relative to where the workflow runs."""
    url: Annotated[str, AfterValidator(_fetchable)] | None = None
    """A file on the web, with its `sha256`; fetched once, and gone on with where a download broke off."""
    sha256: Annotated[str, AfterValidator(_digest)] | None = None
    """With `url`: the hash of its content."""
    hub: str | None = None
    """A dataset of the Hugging Face hub, or a local folder of one; streamed. No code of it is ever run."""
    subset: str | None = None
    """With `hub`: which of the dataset's configurations."""
    hub_split: str = "train"
    """With `hub`: which of its splits the documents are taken from."""
    revision: str | None = None
    """With `hub`: branch, tag or commit. The commit that was read is written down in the manifest."""
    column: str = "text"
    """Of .jsonl, .parquet and hub: the field that holds a document's text."""
    separator: Annotated[str, Field(min_length=1)] | None = END_OF_TEXT
    """Of .txt: what stands between documents; a line break on either side belongs to it. null: each file is one document.
    A named corpus has its own."""
    tokenizer: Tokenizer = Tokenizer()
    validation: Share = 0.1
    """Share of the documents, or of a stream, that makes the validation split."""
    test: Share = 0.0
    """Share that makes the test split."""
    documents: Count | None = None
    """At most so many documents, the first ones; all when not given."""
    seed: Seed = 0
    """Decides which documents go to which split."""
    threads: Count = 2
    """Cores the tokenizer uses. No byte depends on them, so a change of it makes nothing again."""

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split == "train" or getattr(self, split) > 0)

    def paths(self) -> list[str]:
        """Files that `files` names, each once however it is written: globs expanded, in the study's order."""
        found: dict[str, str] = {}
        for pattern in self.files or ():
            for file in expand(pattern):
                found.setdefault(os.path.abspath(file), file)  # noqa: PTH100  (resolve would follow links)
        return list(found.values())

    def sources(self) -> list[str]:
        folder = inside(str(places.folder(self.hub))) if self.hub and is_path(self.hub) else []
        return [*([self.path] if self.path else []), *self.paths(), *folder, *self.tokenizer.sources()]

    def cores(self) -> int:
        return 1 if self.tokenizer.kind == "bytes" else self.threads

    def settings(self) -> dict:
        return self.model_dump(mode="json", exclude={"sweep", "threads"})

    def between(self) -> str | None:
        """What stands between the documents of a .txt file."""
        return CORPORA[self.corpus].separator if self.corpus else self.separator

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "none is given"
            raise ValueError(f"exactly one of corpus ({', '.join(CORPORA)}), files, url and hub is needed; {found}")
        owners = {"path": "corpus", "sha256": "url", "subset": "hub", "revision": "hub"}
        for key, owner in owners.items():
            if getattr(self, key) is not None and given != [owner]:
                raise ValueError(f"{key}: goes with {owner}" + ("; name your own files under files" if key == "path" else ""))
        if self.hub_split != "train" and not self.hub:
            raise ValueError("hub_split: goes with hub")
        if self.url and not self.sha256:
            raise ValueError("sha256: is missing (a url needs the hash of its content)")
        if self.hub and is_path(self.hub) and not places.folder(self.hub).is_dir():
            raise ValueError(f"hub: no such folder: '{self.hub}'")
        if self.corpus and self.separator not in (END_OF_TEXT, self.between()):
            raise ValueError(f"separator: {self.corpus} has its own, {self.between() or 'null'}")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation: with test it takes {self.validation + self.test:g} of the documents; less than 1 is allowed")
        return self


def inside(folder: str) -> list[str]:
    """Files in a local dataset's folder, hidden ones left out."""
    root = Path(folder)
    found = (file for file in root.rglob("*") if file.is_file())
    return sorted(str(file) for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts))
