"""What long work shows: a bar with the time left when a person watches, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """One plain line on standard error."""
    print(text, file=sys.stderr, flush=True)


class Plain:
    """Progress as lines, at most one every ten seconds and one at the end."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.before, self.note = done, done, ""
        self.start = self.last = time.monotonic()

    def advance(self, by: int = 1, note: str | None = None) -> None:
        """`by` units more are done; `note` says how things stand."""
        self.done += by
        self.note = self.note if note is None else note
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            new = self.done - self.before
            left = f", {(now - self.start) / new * (self.total - self.done):.0f} s left" if new else ""
            say(f"{self.what}: {self.done:,} / {self.total:,} {self.unit}{left}{self.note and ', ' + self.note}")

    def close(self) -> None:
        """The last line."""
        say(f"{self.what}: {self.done:,} {self.unit} in {time.monotonic() - self.start:.1f} s{self.note and ', ' + self.note}")


class Bar:
    """Progress as a rich bar."""

    def __init__(self, progress: Progress, task: int) -> None:
        self.progress, self.task = progress, task

    def advance(self, by: int = 1, note: str | None = None) -> None:
        """`by` units more are done; `note` says how things stand."""
        self.progress.advance(self.task, by)  # type: ignore[arg-type]
        if note is not None:
            self.progress.update(self.task, note=note)  # type: ignore[arg-type]


@contextmanager
def progress(what: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Plain | Bar]:
    """Shows how `total` units of work go on, `done` of them before: call `advance` on what this yields."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = Plain(what, total, unit, done)
        yield plain
        plain.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield Bar(bars, bars.add_task(what, total=total, completed=done, note=""))
