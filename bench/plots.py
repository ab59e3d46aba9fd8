"""Plots as SVG, drawn here: bars with marks for what is wanted, and lines over sizes that grow by powers of ten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from typing import Final

WIDTH: Final = 760
LABELS: Final = 240  # wide, at the left
ROW: Final = 30
TONES: Final = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar.

    Attributes:
        label: at its left.
        value: not negative.
        marks: what is wanted, by what it is called.
    """

    label: str
    value: float
    marks: Mapping[str, float | None]


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Bars from zero, one below the other. With a title that is read to who does not see them."""
    top = max((value for row in rows for value in (row.value, *(mark or 0 for mark in row.marks.values()))), default=1)
    wide = (WIDTH - LABELS - 60) / (top or 1)
    parts = []
    for n, row in enumerate(rows):
        y = n * ROW
        parts += [
            f'<text x="{LABELS - 8}" y="{y + 19}" text-anchor="end">{escape(row.label)}</text>',
            f'<rect x="{LABELS}" y="{y + 6}" width="{row.value * wide:.1f}" height="{ROW - 12}" fill="{TONES[0]}"/>',
            f'<text x="{LABELS + row.value * wide + 6:.1f}" y="{y + 19}">{row.value:.2f}</text>',
        ]
        for name, mark in row.marks.items():
            if mark is not None:
                x = LABELS + mark * wide
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 2}" y2="{y + ROW - 2}" class="mark"><title>'
                    f"{escape(row.label)}: {escape(name)} {mark:g}</title></line>"
                )
    return _svg(title, ROW * len(rows), parts)


def lines(title: str, sizes: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """A line for each series over the sizes, which have equal steps where they grow by equal factors."""
    height, left, right, low = 220, 50, WIDTH - 250, 180
    top = max((value for values in series.values() for value in values), default=1) or 1
    first, last = log10(sizes[0]), log10(sizes[-1])
    xs = [left + (right - left) * (log10(size) - first) / ((last - first) or 1) for size in sizes]
    parts = [f'<line x1="{left}" x2="{right}" y1="{low}" y2="{low}" class="axis"/>']
    parts += [
        f'<text x="{x:.1f}" y="{low + 20}" text-anchor="middle">{size:,g}</text>'
        for x, size in zip(xs, sizes, strict=True)
    ]
    parts += [
        f'<text x="{left - 6}" y="{low - (low - 20) * part + 5:.0f}" text-anchor="end">{top * part:.2f}</text>'
        for part in (0, 0.5, 1)
    ]
    for n, (name, values) in enumerate(series.items()):
        tone = TONES[n % len(TONES)]
        points = " ".join(f"{x:.1f},{low - (low - 20) * value / top:.1f}" for x, value in zip(xs, values, strict=True))
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{tone}" stroke-width="2"/>',
            f'<rect x="{right + 20}" y="{20 + 24 * n}" width="12" height="12" fill="{tone}"/>',
            f'<text x="{right + 38}" y="{31 + 24 * n}">{escape(name)}</text>',
        ]
    return _svg(title, height, parts)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    said = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )
