"""Makes one artifact again."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.commands.studies import named
from pipeline.study.graph import Graph
from pipeline.study.open import read_study


def repair(manifest: Path, configfile: list[str], options: list[str]) -> None:
    """Runs the rules that make `manifest`'s artifact and nothing after them. Raises UserError when that fails."""
    parts = manifest.parts
    if len(parts) < 4 or parts[0] != "results" or parts[-1] != "manifest.json":
        raise UserError(f"{manifest}: not the manifest of an artifact, results/<study>/.../manifest.json")
    files = configfile or [str(file) for file in named(parts[1])][:1]
    if not files:
        raise UserError(f"{manifest}: no study here is called '{parts[1]}'; name its file with --configfile")
    _same_settings(manifest, files)
    made = _parts(manifest, files) if parts[2] == "activations" else [str(manifest)]
    command = [sys.executable, "-m", "snakemake", "--configfile", *files, *options, "--forcerun", *made, "--", str(manifest)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{manifest}: could not be made again")


def _parts(manifest: Path, files: list[str]) -> list[str]:
    """What the jobs of a harvest leave: those that find all their shards undamaged keep them."""
    *_, activations, split, _ = manifest.parts
    return Graph(read_study(files)).parts(SimpleNamespace(activations=activations, split=split))


def _same_settings(manifest: Path, files: list[str]) -> None:
    """Raises UserError when the study in `files` asks for another artifact than the one whose manifest this is."""
    wanted = Graph(read_study(files)).spec_at(str(manifest.parent))
    if wanted is None:
        raise UserError(f"{manifest}: {' + '.join(files)} names no such artifact; name the files it was made with by --configfile")
    try:
        made = Artifact.open(manifest).spec
    except DamagedArtifact:
        return
    if made != wanted:
        raise UserError(f"{manifest}: made with other settings than {' + '.join(files)} has; name its files by --configfile")
