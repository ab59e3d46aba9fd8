"""A page of the figures, with plots, in one file: nothing is loaded from anywhere."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from bench.plots import Bar, bars, lines

_STYLE: Final = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
svg { width: 100%; font: 13px system-ui, sans-serif; fill: currentColor }
svg .mark { stroke: #dc2626; stroke-width: 2 } svg .axis { stroke: currentColor }
div { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left }
"""
_COLUMNS: Final = {
    "requests_per_second": "requests/s",
    "ratio": "ratio",
    "first_target": "first target",
    "aim": "aim",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_us": "CPU of the server, µs per request",
    "sql_statements": "SQL statements",
    "transaction_statements": "BEGIN, COMMIT",
    "sql_round_trips": "SQL round trips",
    "valkey_commands": "Valkey commands",
    "valkey_round_trips": "Valkey round trips",
}
_OTHERS: Final = {
    "memory_mb": "Memory of a process, MB",
    "make_run": "`make run` until it answers, seconds",
    "health_while_logging_in": "GET /health while 30 people sign in",
    "jobs": "Jobs",
    "method": "How it was measured",
    "machine": "Machine",
    "versions": "Versions",
}


def page(latest: Mapping[str, Any] | None, growth: Mapping[str, Any] | None) -> str:
    """The whole page. What is None was not measured, and is not on it."""
    parts = [*(_latest(latest) if latest else ()), *(_growth(growth) if growth else ())]
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Slipway: what requests cost</title><style>{_STYLE}</style>\n<h1>What requests cost</h1>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _latest(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        Bar(name, one["ratio"], {"first target": one.get("first_target"), "aim": one.get("aim")})
        for name, one in figures["cases"].items()
    ]
    columns = [key for key in _COLUMNS if any(one.get(key) is not None for one in figures["cases"].values())]
    cases = [[name, *(one.get(key) for key in columns)] for name, one in figures["cases"].items()]
    found = [
        _about(figures),
        "<h2>Requests per second, as ratios to a bare FastAPI route</h2>",
        "<p>The red marks are the first target and the aim.</p>",
        bars("Requests per second, as ratios to a bare FastAPI route", rows),
        _table(["", *(_COLUMNS[key] for key in columns)], cases),
    ]
    for key, title in _OTHERS.items():
        if figures.get(key):
            found += [f"<h2>{title}</h2>", _table([], list(figures[key].items()))]
    return found


def _growth(figures: Mapping[str, Any]) -> list[str]:
    found = ["<h2>How cost grows</h2>", _about(figures)]
    for what, sizes in figures["growth"].items():
        names = list(next(iter(sizes.values())))
        for key, title in (
            ("ratio", "ratio to the bare route of the same round"),
            ("requests_per_second", "requests/s"),
        ):
            series = {name: [one[name][key] for one in sizes.values()] for name in names}
            if key == "ratio":
                series = {name: values for name, values in series.items() if name != names[0]}
            elif what != "processes":
                continue
            found += [
                f"<h3>{escape(what.capitalize())}: {title}</h3>",
                lines(f"{title} by {what}", [float(size) for size in sizes], series),
            ]
        rows = [
            [f"{int(size):,} {what}", name, one["requests_per_second"], one["ratio"], one["p50_ms"], one["p99_ms"]]
            for size, cases in sizes.items()
            for name, one in cases.items()
        ]
        found.append(_table(["", "case", "requests/s", "ratio", "p50 ms", "p99 ms"], rows))
    return found


def _about(figures: Mapping[str, Any]) -> str:
    return f"<p>Measured {escape(figures['date'])}, commit {escape(figures['commit'])}.</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    titles = f"<tr>{''.join(f'<th>{escape(title)}</th>' for title in head)}</tr>" if head else ""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row)}</tr>" for row in rows)
    return f"<div><table>{titles}{lines}</table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
