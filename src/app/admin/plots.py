"""Plots of what was counted by minute, drawn by the server: arithmetic here, SVG in `templates/console/_plot.html`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import ceil, isfinite
from typing import Final, Literal

from app.admin.figures import figure, round_step, time

Tone = Literal["blue", "green", "red", "orange", "purple", "teal", "pink", "gray"]
TONES: Final[tuple[Tone, ...]] = ("blue", "orange", "green", "purple", "teal", "pink", "red", "gray")

_TICKS: Final = 4  # steps of the y axis, at most
_LABELS: Final = 6  # times under the x axis, at most
_MINUTES: Final = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)


def tone_of(index: int) -> Tone:
    """A tone for the n-th of any number of series; after eight they begin anew, and signs tell them apart."""
    return TONES[index % len(TONES)]


def in_percent(share: float | None) -> float | None:
    """A share of 0 to 1 as a plot of percent has it; None where nothing is known."""
    return None if share is None else 100 * share


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn in one tone.

    Attributes:
        name: in the legend.
        values: one for each minute, not negative; None where nothing is known.
        tone: one of `TONES`.
    """

    name: str
    values: Sequence[float | None]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark at an axis, so many percent from its left or upper end."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a stacked bar, in percent of the plot's width and height."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Plot:
    """Lines, or stacked bars.

    Attributes:
        title: what it shows. Makes the ids of what stands in it: differs from other plots of the page.
        unit: of the values: `per minute`, `ms`, `%`.
        series: the first is the lowest of a stack.
        minutes: when each began, in UTC, the oldest first; the last one is not over.
        stacked: bars instead of lines.
    """

    title: str
    unit: str
    series: Sequence[Series]
    minutes: Sequence[datetime]
    stacked: bool = False

    @property
    def key(self) -> str:
        """What its ids begin with."""
        return "plot-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @cached_property
    def columns(self) -> list[list[float | None]]:
        """The values by series, as many as there are minutes, without what is no number."""
        count = len(self.minutes)
        found = []
        for one in self.series:
            values = [_known(value) for value in one.values[:count]]
            found.append(values + [None] * (count - len(values)))
        return found

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is known."""
        return all(value is None for column in self.columns for value in column)

    @cached_property
    def step(self) -> float:
        """Between two marks of the y axis: 1, 2 or 5 times a power of ten; of whole numbers a whole one."""
        if self.stacked:
            highest = max((sum(value or 0 for value in row) for row in zip(*self.columns, strict=True)), default=0)
        else:
            highest = max((value or 0 for column in self.columns for value in column), default=0)
        step = round_step(highest / _TICKS)
        whole = all(value is None or value == int(value) for column in self.columns for value in column)
        return max(1.0, step) if whole else step

    @cached_property
    def top(self) -> float:
        """The highest mark of the y axis: at least one step, and no value is above it."""
        sums = [sum(value or 0 for value in row) for row in zip(*self.columns, strict=True)] if self.stacked else []
        highest = max([*sums, *(value or 0 for column in self.columns for value in column)], default=0)
        return self.step * max(1, ceil(highest / self.step - 1e-9))

    @property
    def y_ticks(self) -> list[Tick]:
        """The marks of the y axis, from zero upwards."""
        count = round(self.top / self.step)
        return [Tick(_rounded(100 - 100 * n / count), figure(self.step * n)) for n in range(count + 1)]

    @property
    def x_ticks(self) -> list[Tick]:
        """Full times under the x axis: as many as fit on a phone."""
        count = len(self.minutes)
        every = next((minutes for minutes in _MINUTES if count <= _LABELS * minutes), _MINUTES[-1])
        return [
            Tick(self._x(n), time(minute))
            for n, minute in enumerate(self.minutes)
            if (minute.hour * 60 + minute.minute) % every == 0
        ]

    @property
    def paths(self) -> list[str]:
        """A line for each series in a square of 100 by 100, as SVG's `d`; broken where nothing is known."""
        return [self._path(column) for column in self.columns]

    @property
    def dots(self) -> list[str]:
        """The numbers that stand alone, for which there is no line: lines without length, which round ends show."""
        return [
            "".join(
                f"M{self._point(n, value)}h0"
                for n, value in enumerate(column)
                if value is not None
                and not any(other is not None for other in (*column[max(0, n - 1) : n], *column[n + 1 : n + 2]))
            )
            for column in self.columns
        ]

    @property
    def bars(self) -> list[list[Bar]]:
        """The bars' parts by series."""
        if not self.minutes:
            return [[] for _ in self.series]
        wide = 100 / len(self.minutes)
        below = [0.0] * len(self.minutes)
        found: list[list[Bar]] = []
        for column in self.columns:
            found.append([])
            for n, value in enumerate(column):
                if value:
                    below[n] += value
                    y, height = 100 - 100 * below[n] / self.top, 100 * value / self.top
                    found[-1].append(
                        Bar(_rounded((n + 0.1) * wide), _rounded(y), _rounded(0.8 * wide), _rounded(height))
                    )
        return found

    @property
    def wide(self) -> float:
        """Of a minute, in percent."""
        return _rounded(100 / len(self.minutes)) if self.minutes else 100.0

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The times with the numbers in words, the newest first."""
        lines = zip(self.minutes, zip(*self.columns, strict=True), strict=True) if self.series else ()
        rows = [(time(minute), [figure(value) for value in values]) for minute, values in reversed(list(lines))]
        return [(f"{when}, not over", numbers) for when, numbers in rows[:1]] + rows[1:]

    @property
    def hints(self) -> list[tuple[float, str]]:
        """For each minute, the oldest first: where it begins, in percent, and its numbers in words."""
        wide = 100 / max(1, len(self.minutes))
        return [
            (_rounded(n * wide), f"UTC {when}: " + ", ".join(map(_named, self.series, numbers)))
            for n, (when, numbers) in enumerate(reversed(self.rows))
        ]

    @property
    def latest(self) -> list[str]:
        """What each series was in the last whole minute, in words."""
        return [figure(_last_whole(column)) for column in self.columns]

    @property
    def summary(self) -> str:
        """What it says to who does not see it."""
        said = [self._said(one.name, column) for one, column in zip(self.series, self.columns, strict=True)]
        return f"{self.title}, {self.unit}. " + " ".join(said or ["No data."])

    def _said(self, name: str, column: list[float | None]) -> str:
        known = [(value, n) for n, value in enumerate(column) if value is not None]
        if not known:
            return f"{name}: no data."
        highest, n = max(known, key=lambda pair: pair[0])
        return f"{name}: last {figure(_last_whole(column))}, highest {figure(highest)} at {time(self.minutes[n])} UTC."

    def _x(self, n: int) -> float:
        return _rounded((n + 0.5) * 100 / len(self.minutes))

    def _path(self, column: list[float | None]) -> str:
        parts, last = [], None
        for n, value in enumerate(column):
            if value is not None:
                parts.append(("M" if last is None else "L") + self._point(n, value))
            last = value
        return "".join(parts)

    def _point(self, n: int, value: float) -> str:
        return f"{self._x(n):g} {_rounded(100 - 100 * value / self.top):g}"


def _known(value: float | None) -> float | None:
    return max(0.0, value) if value is not None and isfinite(value) else None


def _last_whole(column: list[float | None]) -> float | None:
    return column[-2] if len(column) > 1 else None


def _named(one: Series, number: str) -> str:
    return f"{one.name} {number}"


def _rounded(value: float) -> float:
    return round(value, 3)
