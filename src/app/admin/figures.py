"""Numbers as people read them."""

from datetime import datetime
from math import floor, log10
from typing import Final

_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))


def round_step(least: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below this; 1 for nothing."""
    if least <= 0:
        return 1.0
    power = 10.0 ** floor(log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


def figure(value: float | None) -> str:
    """A number in words, to three digits."""
    if value is None:
        return "no data"
    if abs(value) >= 1e15:
        return f"{value:.2e}"
    for least, prefix in _PREFIXES:
        if abs(value) >= least:
            factor = 1e3 if prefix == "k" else least
            return f"{_short(value / factor)} {prefix}"
    return _short(value)


def time(minute: datetime) -> str:
    """A minute's time of the day."""
    return f"{minute:%H:%M}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Some seconds in words, in one unit."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{figure(round(seconds, 1 if seconds < 10 else 0))} s"
