"""Checks artifacts against their manifests."""

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
            except DamagedArtifact as error:
                faults.append(str(error))
                continue
            for name in artifact.files:
                files += 1
                try:
                    artifact.check(name)
                except DamagedArtifact as error:
                    faults.append(str(error))
            bar.advance()
    if faults:
        raise UserError("\n".join(faults))
    say(f"{len(manifests)} artifacts, {files} files: all as published")
