"""Makes one artifact again."""

import subprocess
import sys
from pathlib import Path

from pipeline.artifacts.errors import UserError
from pipeline.commands.studies import named


def repair(manifest: Path, configfile: list[str], options: list[str]) -> None:
    """Runs the rules that make `manifest`'s artifact and nothing after them. Raises UserError when that fails."""
    parts = manifest.parts
    if len(parts) < 4 or parts[0] != "results" or parts[-1] != "manifest.json":
        raise UserError(f"{manifest}: not the manifest of an artifact, results/<study>/.../manifest.json")
    files = configfile or [str(file) for file in named(parts[1])][:1]
    if not files:
        raise UserError(f"{manifest}: no study here is called '{parts[1]}'; name its file with --configfile")
    made = manifest.with_name("harvest.json") if parts[2] == "activations" else manifest
    command = [sys.executable, "-m", "snakemake", "--configfile", *files, *options, "--forcerun", str(made), "--", str(manifest)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{manifest}: could not be made again")
