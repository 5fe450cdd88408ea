"""Shows a run in TensorBoard or Weights & Biases while it goes on. Both are extras, off by default.

A study's `tracking` reaches the step through SAEFLOW_TRACKING and is no part of its settings: it decides no byte of an artifact.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts.errors import UserError

Row = dict[str, float]


class Tracker(Protocol):
    """Takes the rows of a curve as they come."""

    def log(self, row: Row, times: Row) -> None:
        """A row of the curve, and the row of times that belongs to it."""


@contextmanager
def tracker(name: str, settings: dict[str, Any], first: bool = True, fresh: bool = True) -> Iterator[Tracker | None]:
    """What SAEFLOW_TRACKING asks for, None where it asks for nothing, and in all processes of a group but the `first`. `name` is
    the run's, `settings` are shown beside it; a `fresh` run removes what an earlier one left."""
    wanted = json.loads(os.environ.get("SAEFLOW_TRACKING") or "{}") if first else {}
    folder = Path(wanted.get("folder", "")) / name
    found: list[Any] = []
    if wanted and fresh:
        for earlier in ("tensorboard", "wandb"):
            shutil.rmtree(folder / earlier, ignore_errors=True)
    if wanted.get("tensorboard"):
        found.append(_TensorBoard(folder))
    if wanted.get("wandb", "off") != "off":
        found.append(_WandB(folder, wanted["wandb"], wanted["project"], name, settings))
    try:
        yield _All(found) if found else None
    finally:
        for one in found:
            one.close()


class _All:
    def __init__(self, trackers: list[Any]) -> None:
        self.trackers = trackers

    def log(self, row: Row, times: Row) -> None:
        for one in self.trackers:
            one.log(row, times)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        _needs("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Row, times: Row) -> None:
        for name, value in {**row, **times}.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: Path, mode: str, project: str, name: str, settings: dict[str, Any]) -> None:
        _needs("wandb")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        # Without `reinit`, variants that are trained together would all be the first one's run.
        quiet = wandb.Settings(silent=True, reinit="create_new")
        self.run = wandb.init(dir=str(folder), mode=mode, project=project, name=name, config=settings, settings=quiet)  # type: ignore[arg-type]

    def log(self, row: Row, times: Row) -> None:
        self.run.log({name: value for name, value in {**row, **times}.items() if name != "step"}, step=int(row["step"]))

    def close(self) -> None:
        self.run.finish()


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"tracking: {package} is not installed; `pip install 'saeflow[tracking]'` brings it")
