"""The studies of this folder: config.yaml and studies/*.yaml."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.study.faults import StudyError
from pipeline.study.graph import Graph
from pipeline.study.open import read_study
from pipeline.study.read import Sources


def here() -> list[Path]:
    """Study files of this folder. An overlay in studies/ has no `name` of its own and is left out."""
    files = [*Path().glob("config.yaml"), *sorted(Path("studies").glob("*.yaml"))]
    return [file for file in files if "name" in Sources([file]).read()]


def named(name: str) -> list[Path]:
    """Files of the study with this name."""
    return [file for file in here() if Sources([file]).read()["name"] == name]


def graphs(more: Iterable[str | Path]) -> list[Graph]:
    """Every study of this folder, and the one that `more` makes. Raises StudyError when one is wrong."""
    wanted: list[list[str | Path]] = [[file] for file in here()]
    if more := list(more):
        wanted.append(more)
    if not wanted:
        raise StudyError(["there is no config.yaml and no studies/*.yaml in this folder"])
    return [Graph(read_study(files)) for files in wanted]
