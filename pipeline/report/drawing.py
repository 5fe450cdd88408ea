"""How the report's figures look: colours, markers and lines that tell names apart, axes, legends."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ["#0b6bcb", "#d4641c", "#1f8a4c", "#8e44ad", "#b58900", "#c0392b", "#0e8f9c", "#6b7280", "#d6338a", "#5c4632"]
MARKERS = "osD^vPX*<"
LINES = ("-", "--", ":", "-.")
INSIDE = 5
"""Names that a legend has inside its axes at most; more stand below."""


@dataclass(frozen=True)
class Look:
    """How one name is drawn."""

    colour: str
    marker: str
    style: str

    def line(self, faint: bool = False) -> dict[str, Any]:
        """Settings of a line; faint beside another one of the same name."""
        return {"color": self.colour, "linestyle": self.style, "alpha": 0.4 if faint else 0.9, "linewidth": 1.0 if faint else 1.5}

    def point(self) -> dict[str, Any]:
        """Settings of points."""
        return {"color": self.colour, "marker": self.marker}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each distinct name, in order: colours and markers repeat after different numbers of names."""
    lines = [line for line in LINES for _ in COLOURS]
    found = enumerate(dict.fromkeys(names))
    return {name: Look(COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], lines[n % len(lines)]) for n, name in found}


def plain_log(axis: Axis) -> None:
    """Ticks at 1, 2, 3, 5 of each decade, written as plain numbers: most of our ranges are shorter than a decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, axes: Axes, below: bool = False) -> None:
    """A legend of the names in some axes, each once, if there are several; below where they are many, and the figure is higher then."""
    handles: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    if len(handles) < 2:
        return
    if len(handles) <= INSIDE and not below:
        axes.legend(handles.values(), handles.keys(), fontsize=8)
        return
    columns = 4 if max(map(len, handles)) < 30 else 2
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(handles) // columns))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=8, ncols=columns)
