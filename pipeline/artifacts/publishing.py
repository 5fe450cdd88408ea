"""How artifacts come to be: written aside, put in place, their manifest last (manifest.py); and how one is withdrawn."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import FORMAT, MANIFEST, Artifact, as_json, own_hash, sha256, write_json
from pipeline.artifacts.run import run_facts
from pipeline.artifacts.storage import Bucket, Storage

RESUME = ".resume"
"""Where a step keeps the state of an unfinished run, in the folder of its artifact; it removes it itself."""


def entry(path: Path, about: str | None = None) -> dict[str, Any]:
    """What a manifest says of a file; `about` is printed with any fault."""
    return {"size": path.stat().st_size, "sha256": sha256(path), **({"about": about} if about else {})}


@contextmanager
def publishing(folder: Path, kind: str, spec: Any, inputs: Mapping[str, Artifact]) -> Iterator["Draft"]:
    """A draft in which to write an artifact's files; they appear in `folder`, manifest last, when the block ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as draft:
        content = Draft(Path(draft))
        yield content
        names = sorted(str(path.relative_to(draft)) for path in Path(draft).rglob("*") if path.is_file())
        files = {name: entry(Path(draft) / name) for name in names if name not in content.apart}
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (Path(draft) / name).open("rb") as file:
                os.fsync(file.fileno())
            (Path(draft) / name).replace(folder / name)
        if folder.parts[0] == "results":  # a step run by hand may publish anywhere: there nothing is removed
            _remove_all_but(folder, {folder / name for name in names}, Path(draft))
    seal(folder, kind, spec, inputs, files, content.facts)


def seal(folder: Path, kind: str, spec: Any, inputs: Mapping[str, Artifact], files: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes run.json, then the manifest that makes the folder an artifact. Where the files lie elsewhere, as the fact `location` says, the
    manifest is put there first, which publishes them."""
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "spec": spec,
        "inputs": {name: artifact.hash for name, artifact in inputs.items()},
        "files": dict(files),
        "facts": dict(facts),
    }
    manifest["hash"] = own_hash(manifest)
    write_json(folder / "run.json", run_facts())
    if location := facts.get("location"):
        Bucket(location).write(MANIFEST, as_json(manifest))
    write_json(folder / MANIFEST, manifest)


def withdraw(folder: Path, storage: Storage, spec: Any, inputs: Mapping[str, Artifact]) -> None:
    """Removes the manifest of an artifact whose files are to be made again: where they lie, and in its folder.

    Raises UserError when the one where they lie is of another artifact: people who name their studies alike may share an address. It is
    this one when it stands in the folder too, or when spec and inputs are the same.
    """
    if isinstance(storage, Bucket):
        # The folder's first: another job, which does the same, removes it last.
        own, there = _opened(folder / MANIFEST), _opened(storage.where(MANIFEST))
        wanted = {name: artifact.hash for name, artifact in inputs.items()}
        if there and (own is None or own.hash != there.hash) and (there.spec, there.manifest["inputs"]) != (spec, wanted):
            raise UserError(
                f"{storage.where(MANIFEST)}: is of another artifact, made with other settings or inputs and not from {folder}; "
                "choose another location, or remove it where nobody needs it"
            )
        storage.remove(MANIFEST)
    (folder / MANIFEST).unlink(missing_ok=True)


def _opened(manifest: Path | str) -> Artifact | None:
    """An artifact, if its manifest is there and whole."""
    try:
        return Artifact.open(manifest)
    except DamagedArtifact:
        return None


class Draft:
    """The folder in which an artifact is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}
        """What readers need to know without opening a file; part of the manifest."""
        self.apart: set[str] = set()

    def path(self, name: str) -> Path:
        """Where to write the file `name`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def aside(self, name: str) -> Path:
        """Where to write a file that is never twice the same: it lies beside the others and outside the hash, like run.json."""
        self.apart.add(name)
        return self.path(name)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        write_json(self.path(name), value)


def _remove_all_but(folder: Path, files: set[Path], draft: Path) -> None:
    """Removes what an earlier, different artifact left in a folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path == draft or draft in path.parents or RESUME in path.parts:
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in files:
            path.unlink()
