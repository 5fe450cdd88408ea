"""Artifacts: folders that are published whole, described by a manifest, and checked when they are read.

`manifest.json` holds the spec, the hashes of the input manifests, every file with size and sha256, facts that readers need,
and its own hash. It is written last, so a folder without one is no artifact. `run.json` (times, memory, host, versions)
stands beside it and outside the hash. Manifests are what rules exchange: a step that makes the same bytes again leaves an
equal manifest, and nothing after it runs.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.run import run_facts
from pipeline.artifacts.storage import Bucket, Storage, storage, unreadable

FORMAT = 1
MANIFEST = "manifest.json"
DIFFERENT = "the bytes differ from those published"
RESUME = ".resume"
"""Where a step keeps the state of an unfinished run, in the folder of its artifact; it removes it itself."""


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_json(value: Any) -> bytes:
    """JSON for people and programs."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """JSON, put in place by a rename."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(as_json(value))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def own_hash(manifest: Mapping[str, Any]) -> str:
    """The hash a manifest has: over everything in it but the hash."""
    rest = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A published artifact, opened by its manifest."""

    folder: Path
    manifest: dict[str, Any]
    address: str | None = None
    """Where its files lie, if it was opened from there."""

    @classmethod
    def open(cls, manifest: Path | str) -> "Artifact":
        """Reads a manifest, at a path or an address such as s3://bucket/prefix/manifest.json, and checks its own hash. Raises
        DamagedArtifact."""
        address, _, name = str(manifest).rpartition("/") if "://" in str(manifest) else ("", "", "")
        try:
            content = json.loads(Bucket(address).read(name) if address else Path(manifest).read_bytes())
        except FileNotFoundError:
            raise DamagedArtifact(
                f"{manifest}: there is no manifest, so the artifact was never finished; repair: {repair(manifest)}"
            ) from None
        except OSError as error:
            raise UserError(f"{manifest}: {unreadable(error)}") from None
        except ValueError:
            raise DamagedArtifact(f"{manifest}: not readable as JSON; repair: {repair(manifest)}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("hash") != own_hash(content):
            raise DamagedArtifact(f"{manifest}: does not have the content it was published with; repair: {repair(manifest)}")
        return cls(Path(address or Path(manifest).parent), content, address or None)

    @property
    def hash(self) -> str:
        return self.manifest["hash"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def spec(self) -> dict[str, Any]:
        return self.manifest["spec"]

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest["facts"]

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        return self.manifest["files"]

    @cached_property
    def _checked(self) -> set[str]:
        return set()

    def file(self, name: str) -> Path:
        """Path of one of the files, its bytes checked when it is first asked for. Raises DamagedArtifact."""
        if name not in self._checked:
            self.check(name)
            self._checked.add(name)
        return self.folder / name

    @cached_property
    def storage(self) -> Storage:
        """Where its files lie."""
        return storage(self.folder, self.address or self.facts.get("location"))

    def check(self, name: str) -> None:
        """Compares a file with its size and hash in the manifest. Raises DamagedArtifact."""
        if fault := self.fault(name):
            self.damaged(name, fault)

    def check_size(self, name: str) -> None:
        """Compares a file's size with that in the manifest. Raises DamagedArtifact."""
        if fault := self._fault_of_size(name):
            self.damaged(name, fault)

    def check_manifest(self) -> None:
        """Compares the manifest beside the files with this one, where they lie elsewhere. Raises DamagedArtifact."""
        if isinstance(self.storage, Bucket):
            size = self.storage.size(MANIFEST)
            if size is None:
                self.damaged(MANIFEST, "the manifest is missing")
            if self.storage.read(MANIFEST) != as_json(self.manifest):
                self.damaged(MANIFEST, f"is not the manifest that stands in {self.folder}")

    def fault(self, name: str) -> str | None:
        """What has become of a file, if it is not as published. Raises UserError when an object store is not to be reached."""
        if fault := self._fault_of_size(name):
            return fault
        try:
            found = self.storage.sha256(name)
        except OSError as error:
            return unreadable(error)
        if found == self.files[name]["sha256"]:
            return None
        twin = next((other for other, entry in self.files.items() if entry["sha256"] == found), None)
        return f"holds the bytes of {twin}" if twin else DIFFERENT

    def _fault_of_size(self, name: str) -> str | None:
        expected = self.files[name]["size"]
        try:
            size = self.storage.size(name)
        except OSError as error:
            return unreadable(error)
        if size is None:
            return "the file is missing"
        if size != expected:
            return f"{size:,} bytes, and {expected:,} were published" if size else "the file is empty"
        return None

    def damaged(self, name: str, problem: str, what: str | None = None) -> NoReturn:
        """Raises DamagedArtifact, saying what of a file (all it is about, if not told) has which problem, and what repairs it."""
        manifest = self.folder / MANIFEST if self.address is None else f"{self.address}/{MANIFEST}"
        raise DamagedArtifact(f"{self._named(name, what)}: {problem}; repair: {repair(manifest)}")

    def unread(self, name: str, error: Exception, what: str | None = None) -> NoReturn:
        """Raises what became of a file that the storage did not give: DamagedArtifact where a second look finds a fault of the file, else
        UserError, since nothing is to be made again."""
        if fault := self.fault(name):
            self.damaged(name, fault, what)
        raise UserError(f"{self._named(name, what)}: {unreadable(error)}")

    def _named(self, name: str, what: str | None) -> str:
        """A file, and what of it a message is about: all of it, if not told."""
        about = what or self.files.get(name, {}).get("about")
        return f"{self.storage.where(name)}{f' ({about})' if about else ''}"

    def content(self, name: str) -> bytes:
        """The bytes of one of the smaller files, checked, wherever it lies. Raises DamagedArtifact."""
        self.check_size(name)
        try:
            found = self.storage.read(name)
        except OSError as error:
            self.unread(name, error)
        if hashlib.sha256(found).hexdigest() != self.files[name]["sha256"]:
            self.damaged(name, self.fault(name) or DIFFERENT)
        return found

    def read_json(self, name: str) -> Any:
        """A JSON file of the artifact."""
        return json.loads(self.content(name))


def repair(manifest: Path | str) -> str:
    """The command that makes an artifact again. What follows it stays, since the same bytes come back."""
    if "://" in str(manifest):
        return "python -m pipeline repair <its manifest in results/>, where it was made"
    study = os.environ.get("SAEFLOW_CONFIGFILES", "")
    return f"python -m pipeline repair {manifest}{f' --configfile {study}' if study else ''}"


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
