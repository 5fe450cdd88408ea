"""Opens a study for use: what is wrong with it ends the process, one line per fault."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.study import places
from pipeline.study.faults import StudyError
from pipeline.study.read import Sources
from pipeline.study.study import Study, parse


def open_study(settings: dict[str, Any], files: Iterable[str | Path]) -> Study:
    """The study in `settings`, which Snakemake merged from `files`. Exits with the faults when it is wrong."""
    try:
        sources = Sources(files)
        sources.read()
        return _parsed(settings, sources)
    except StudyError as error:
        sys.exit(f"the study cannot run:\n{error}")


def read_study(files: Iterable[str | Path]) -> Study:
    """The study that these files make, later ones over earlier ones. Raises StudyError."""
    sources = Sources(files)
    return _parsed(sources.read(), sources)


def _parsed(settings: dict[str, Any], sources: Sources) -> Study:
    with places.data_folder(settings.get("data_dir")):
        try:
            return parse(settings)
        except StudyError as error:
            raise sources.named(error) from None
