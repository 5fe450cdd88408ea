"""Removes what no study names any more."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.artifacts.errors import DamagedArtifact
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.commands.studies import graphs
from pipeline.console import say
from pipeline.study.graph import Graph

RESULTS = Path("results")
DEPTHS = {"datasets": 1, "models": 1, "samples": 1, "activations": 2, "saes": 3, "evaluation": 3, "features": 3, "probe": 3}
"""How deep under its stage's folder an artifact lies."""


def clean(configfile: list[str], *, dry_run: bool, unknown: bool) -> None:
    """Removes artifacts, with their logs, that no study of this folder (and not that of `configfile`) names.

    Results of studies that are not here stay, unless `unknown`. Raises StudyError when a study is wrong: nothing is
    removed by a guess.
    """
    studies = graphs(configfile)
    removed = 0
    for folder in sorted(path for path in RESULTS.glob("*") if path.is_dir() and path.name != "logs"):
        mine = [graph for graph in studies if graph.root == str(folder)]
        if mine:
            removed += sum(_remove(path, dry_run) for path in _orphans(folder, mine))
        elif unknown:
            removed += _remove(folder, dry_run)
        else:
            say(f"{folder}: no study here has this name; left alone (--unknown removes it)")
    say(f"{'would remove' if dry_run else 'removed'} {removed / 2**20:,.1f} MiB")


def _orphans(folder: Path, studies: Iterable[Graph]) -> list[Path]:
    """Folders of artifacts and of logs that none of the studies names."""
    kept = {Path(path).relative_to(folder) for graph in studies for paths in graph.everything().values() for path in paths}
    found = []
    for root in (folder, folder / "logs"):
        for stage, depth in DEPTHS.items():
            for path in sorted((root / stage).glob("/".join("*" * depth))):
                if path.relative_to(root) not in kept:
                    found.append(path)
    return found


def _remove(path: Path, dry_run: bool) -> int:
    """Bytes under a folder, which is removed with the empty folders around it."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    say(f"{path}: {size / 2**20:,.1f} MiB")
    for elsewhere in _elsewhere(path):
        say(f"{elsewhere}: a store that lies there is left alone; remove it with the tools of that place")
    if dry_run:
        return size
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    for parent in path.parents:
        if parent == RESULTS or any(parent.iterdir()):
            break
        parent.rmdir()
    return size


def _elsewhere(path: Path) -> list[str]:
    """Addresses of artifacts under a folder whose files lie in an object store."""
    found = []
    for manifest in path.rglob(MANIFEST):
        try:
            found.append(Artifact.open(manifest).facts.get("location"))
        except DamagedArtifact:
            continue
    return sorted(filter(None, found))
