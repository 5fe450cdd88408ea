"""Finds texts with a pinned content: a path of the study, the data folder, an installed package, the web."""

import importlib.metadata
import os
from pathlib import Path

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.console import say
from pipeline.datasets import download
from pipeline.study.corpora import Corpus


def find(corpus: Corpus, path: str | None) -> Path:
    """A file with the corpus' hash. Raises UserError when one that was found has another, or none was found."""
    for place, source in (
        (Path(path) if path else None, "the study's path"),
        (_in_data_folder(corpus), "the data folder (data_dir, SAEFLOW_DATA)"),
        (_in_package(corpus), f"the installed package {corpus.package and corpus.package[0]}"),
    ):
        if place is None:
            continue
        if place.is_file():
            return _checked(place, corpus, source)
        if path and place == Path(path):
            raise UserError(f"{place}: no such file (the study's path)")
    return _download(corpus)


def _in_data_folder(corpus: Corpus) -> Path | None:
    folder = os.environ.get("SAEFLOW_DATA")
    return Path(folder) / corpus.file if folder else None


def _in_package(corpus: Corpus) -> Path | None:
    if corpus.package is None:
        return None
    package, file = corpus.package
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        return None


def _checked(file: Path, corpus: Corpus, source: str) -> Path:
    if (found := sha256(file)) != corpus.sha256:
        raise UserError(f"{file} ({source}): sha256 is {found}, and {corpus.file} has {corpus.sha256}")
    say(f"{corpus.file}: {file}, from {source}")
    return file


def _download(corpus: Corpus) -> Path:
    places = f"put it into a folder and name that in data_dir or SAEFLOW_DATA (sha256 {corpus.sha256})"
    if corpus.url is None:
        raise UserError("; ".join(filter(None, (f"{corpus.file} was not found", places, corpus.instead))))
    file = download.fetch(corpus.url, corpus.sha256, corpus.file, f"; {corpus.file} was not found here; {places}")
    return _checked(file, corpus, corpus.url)
