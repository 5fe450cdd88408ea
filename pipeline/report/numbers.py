"""Numbers as a person reads them."""

from collections.abc import Callable, Sequence
from math import floor, log10


def plain(value: float | int | None, digits: int = 4) -> str:
    """A number with so many significant digits; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if not value:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - floor(log10(abs(value))))}f}"


def percent(value: float | None) -> str:
    """A share in per cent; small ones with two significant digits."""
    if value is None:
        return "–"
    return f"{100 * value:.2g} %" if 0 < value < 1e-3 else f"{100 * value:.1f} %"


def spread(values: Sequence[float | None], show: Callable[[float | None], str] = plain) -> str:
    """A number, or mean and range where there are several that do not look the same."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if show(min(known)) == show(max(known)):
        return show(known[0])
    return f"{show(sum(known) / len(known))} ({show(min(known))} – {show(max(known))})"
