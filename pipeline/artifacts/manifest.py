"""Artifacts: folders described by a manifest, and checked when they are read (publishing.py writes them, whole).

`manifest.json` holds the spec, the hashes of the input manifests, every file with size and sha256, facts that readers need,
and its own hash. It is written last, so a folder without one is no artifact. `run.json` (times, memory, host, versions)
stands beside it and outside the hash. Manifests are what rules exchange: a step that makes the same bytes again leaves an
equal manifest, and nothing after it runs.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.storage import Bucket, Storage, storage, unreadable

FORMAT = 1
MANIFEST = "manifest.json"
DIFFERENT = "the bytes differ from those published"


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
