"""Checks artifacts against their manifests."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.console import progress, say


def verify(folder: Path) -> None:
    """Reads every file of every artifact under `folder`. Raises UserError when any is not as published."""
    manifests = sorted(folder.rglob(MANIFEST))
    if not manifests:
        raise UserError(f"{folder}: no artifacts here")
    faults: list[str] = []
    files = 0
    with progress("verify", len(manifests), "artifacts") as bar:
        for manifest in manifests:
            try:
                artifact = Artifact.open(manifest)
                files += len(artifact.files)
                faults += _faults(artifact)
            except UserError as error:
                faults.append(str(error))
            bar.advance()
    if faults:
        raise UserError("\n".join(faults))
    say(f"{len(manifests)} artifacts, {files} files: all as published")


def _faults(artifact: Artifact) -> list[str]:
    """What is damaged. Raises UserError where the place of the files cannot be reached at all."""
    found = []
    checks: list[Callable[[], None]] = [artifact.check_manifest, *(partial(artifact.check, name) for name in artifact.files)]
    for check in checks:
        try:
            check()
        except DamagedArtifact as error:
            found.append(str(error))
    return found
