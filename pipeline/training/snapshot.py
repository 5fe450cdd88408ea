"""The state of a run on disk, so that a run that was killed goes on where its last snapshot stands.

One safetensors file in `.resume/` beside the outputs of a step, put in place by a rename, removed when the step publishes. It
carries the digest of settings, inputs and code; that of another run is discarded with one line.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.publishing import RESUME
from pipeline.console import say

SECONDS = 20.0
"""Least time between snapshots."""
SHARE = 0.02
"""Most of a run's time that is spent on them."""
Tensors = dict[str, Tensor]


class Snapshots:
    """Snapshots of one run, whose settings, inputs and code are `identity`."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.file, self.identity = folder / RESUME / "run.safetensors", identity
        self.wait = float(os.environ.get("SAEFLOW_SNAPSHOT_SECONDS", SECONDS))
        self.least = self.wait
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self.last >= self.wait

    def save(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Puts a snapshot in place of the last one."""
        begun = time.monotonic()
        kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        with replacing(self.file) as beside:
            save_file(kept, beside, {"identity": self.identity, "values": json.dumps(values)})
        self.last = time.monotonic()
        if self.least:
            self.wait = max(self.least, (self.last - begun) / SHARE)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from the same run meanwhile: one that outlived its workflow may still be at work. Raises UserError
        when there is one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with (self.file.parent / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise UserError(f"{self.file.parent}: process {lock.read()} is still at work on this run; end it, or wait for it") from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The last snapshot; None when there is none of this run."""
        if not self.file.is_file():
            return None
        try:
            with safe_open(self.file, "pt") as stored:
                metadata = stored.metadata()
                if metadata["identity"] == self.identity:
                    return {name: stored.get_tensor(name) for name in stored.keys()}, json.loads(metadata["values"])  # noqa: SIM118
            say(f"{self.file}: of other settings, inputs or code; discarded, the run starts at its beginning")
        except (SafetensorError, OSError) as error:
            say(f"{self.file}: not readable ({error}); discarded, the run starts at its beginning")
        return None

    @property
    def folder(self) -> Path:
        """Where files of an unfinished run may lie beside its state."""
        return self.file.parent

    def clear(self) -> None:
        """Removes what another run left beside its state."""
        for left in self.folder.iterdir() if self.folder.is_dir() else ():
            if left.is_dir():
                shutil.rmtree(left)

    def remove(self) -> None:
        """Removes it: the run has published what it made."""
        shutil.rmtree(self.file.parent, ignore_errors=True)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside a file to write to; it is flushed and put in the file's place when the block ends well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}.part")
    yield beside
    with beside.open("rb") as written:
        os.fsync(written.fileno())
    beside.replace(file)


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def named(prefix: str, tensors: Tensors) -> Tensors:
    """The same tensors with `prefix` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def random_state() -> Tensors:
    """States of this process' random generators."""
    found = {"cpu": torch.get_rng_state()}
    return {**found, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else found


def set_random_state(state: Tensors) -> None:
    """Puts the generators back to `state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
