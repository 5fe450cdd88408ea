"""Where a dataset's documents come from, and which split each goes to."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.console import progress, say
from pipeline.datasets import blocks, corpora, download, lines, readers, splits
from pipeline.datasets.blocks import Apart, Block, Takes
from pipeline.datasets.hub import Hub
from pipeline.study.corpora import CORPORA
from pipeline.study.dataset import SPLITS
from pipeline.study.datasets.text import Text as Spec

Parts = Iterator[tuple[str, Block]]
"""Blocks in the order they are read, each with the split that all of it goes to."""


class Documents:
    """Documents from anywhere, given to splits one by one."""

    stream = False

    def __init__(self, spec: Spec, name: str) -> None:
        self.spec, self.name = spec, name

    def blocks(self, what: str, takes: Takes) -> Iterator[Block]:
        """All documents. `what` is done with them, for the progress that is shown, by an encoder that `takes` such bytes."""
        raise NotImplementedError

    def hashes(self) -> dict[str, str]:
        """What was read, and its sha256 or revision."""
        raise NotImplementedError

    def parts(self, what: str, takes: Takes, apart: Apart | None = None, only: str | None = None) -> Parts:
        """The documents by split; `only`: those of one. Pieces of long ones that are not `apart` come as one."""
        spec, done = self.spec, 0
        found = self.blocks(what, takes)
        for block in blocks.joined(found, apart) if apart else found:
            numbers = done + np.cumsum(block.ends) - block.ends
            if spec.documents is not None and len(numbers) and numbers[-1] >= spec.documents:
                block = block.select(numbers < spec.documents)
                numbers = numbers[numbers < spec.documents]
            splits_of = splits.of_documents(numbers, spec.seed, spec.validation, spec.test)
            for at, split in enumerate(SPLITS):
                if only in (None, split) and (some := block.select(splits_of == at)).pieces:
                    yield split, some
            done += int(block.ends.sum())
            if done == spec.documents:
                return

    def check(self, documents: Mapping[str, int]) -> None:
        """Raises UserError when a split has no documents."""
        for split, count in documents.items():
            if not count:
                share = 1 - self.spec.validation - self.spec.test if split == "train" else getattr(self.spec, split)
                all_of = sum(documents.values())
                raise UserError(
                    f"{self.name}: of {all_of:,} document{'s' * (all_of != 1)} none falls to {split}, whose share is {share:g}; "
                    "more documents, a larger share or another seed is needed"
                )


class Files(Documents):
    """Documents of some files, in the order of the files; a document ends where its file does."""

    def __init__(self, spec: Spec, files: Mapping[str, Path]) -> None:
        super().__init__(spec, next(iter(files)) if len(files) == 1 else f"{len(files)} files")
        self.files = files
        for file in files.values():
            if not file.is_file():
                raise UserError(f"{file}: no such file")

    def blocks(self, what: str, takes: Takes) -> Iterator[Block]:
        with progress(what, sum(file.stat().st_size for file in self.files.values()), "bytes") as bar:
            for file in self.files.values():
                yield from readers.read(file, self.spec.between(), self.spec.column, takes, bar.advance)

    def hashes(self) -> dict[str, str]:
        found = {}
        for name, file in self.files.items():
            with readers.told(file):
                found[name] = sha256(file)
        return found


class FromHub(Documents):
    """Documents of a dataset on the hub."""

    def __init__(self, spec: Spec) -> None:
        self.hub = Hub(spec)
        super().__init__(spec, self.hub.name)

    def blocks(self, what: str, takes: Takes) -> Iterator[Block]:
        say(f"{what}: {self.name}")
        return self.hub.blocks()

    def hashes(self) -> dict[str, str]:
        return self.hub.sources()


class Stream(Files):
    """A single file that is one stream: its beginning is train, then come validation and test."""

    stream = True

    def parts(self, what: str, takes: Takes, apart: Apart | None = None, only: str | None = None) -> Parts:
        ((_, file),) = self.files.items()
        with readers.told(file):
            ranges = {split: one for split, one in self._ranges(file, takes).items() if only in (None, split)}
            with progress(what, sum(stop - start for start, stop in ranges.values()), "bytes") as bar:
                for split, (start, stop) in ranges.items():
                    found = lines.documents(readers.chunks(file, start, stop, takes, bar.advance), None)
                    for block in blocks.joined(found, apart) if apart else found:
                        yield split, block

    def _ranges(self, file: Path, takes: Takes) -> dict[str, tuple[int, int]]:
        """Where each split begins and ends, in bytes. Where tokens are more than bytes no word is cut in two."""
        start, size = readers.beginning(file), file.stat().st_size
        cuts = [start + at for at in splits.of_stream(size - start, self.spec.validation, self.spec.test)]
        if takes == "text":  # at either end of the file there is no word to be cut: nothing may be moved away from there
            cuts = [_word_start(file, at) if start < at < size else at for at in cuts]
        bounds = dict(zip(SPLITS, zip([start, *cuts], [*cuts, size], strict=True), strict=True))
        for split in self.spec.splits():
            if bounds[split][0] >= bounds[split][1]:
                shares = ", ".join(f"{getattr(self.spec, one):g} for {one}" for one in self.spec.splits()[1:])
                raise UserError(f"{self.name}: {size:,} bytes cannot be split{', ' * bool(shares)}{shares}: nothing is left for {split}")
        return {split: bounds[split] for split in self.spec.splits()}


def of(spec: Spec) -> Documents:
    """Where the study's texts are. Fetches what has to be fetched."""
    if spec.hub:
        return FromHub(spec)
    files = _files(spec)
    names = list(files)
    if len(names) == 1 and files[names[0]].suffix not in (".jsonl", ".parquet") and _is_stream(spec, files[names[0]]):
        return Stream(spec, files)
    return Files(spec, files)


def _files(spec: Spec) -> dict[str, Path]:
    """The files, by the names that go into the manifest: those do not depend on the machine."""
    if spec.corpus:
        corpus = CORPORA[spec.corpus]
        return {corpus.file: corpora.find(corpus, spec.path)}
    if spec.url:
        assert spec.sha256 is not None
        return {spec.url: download.fetch(spec.url, spec.sha256, PurePosixPath(spec.url.partition("?")[0]).name)}
    return {name: Path(name) for name in spec.paths()}


def _is_stream(spec: Spec, file: Path) -> bool:
    if (separator := spec.between()) is None:
        return True
    with readers.told(file):
        if not file.is_file() or lines.occurs(separator, file):
            return False
    say(f"{file}: {separator!r} does not occur in it, so it is one stream")
    return True


def _word_start(file: Path, at: int) -> int:
    """The nearest place before `at` where a long document would be cut."""
    with file.open("rb") as handle:
        handle.seek(max(0, at - blocks.PIECE))
        window = handle.read(min(at, blocks.PIECE))
    return at - len(window) + blocks.cut(window) if window else at
