"""The figures next to what is wanted (`bench/results/latest.md`): met, or missed and by how much."""

from collections.abc import Mapping
from typing import Any, Final

# What is wanted besides the cases' ratios: part and name in the figures, what it is called, unit, first target, aim.
OTHERS: Final = (
    ("health_while_logging_in", "p99_ms", "p99 of GET /health while 30 log in", "ms", 50, 20),
    ("jobs", "start_p50_ms", "enqueue to start on an idle worker, median", "ms", 100, 20),
    ("memory_mb", "app, after start", "memory of a web process after its start", "MB", 110, 90),
    ("make_run", "first start, seconds", "`make run` to first answer, in a fresh clone", "s", 5, 3),
    ("make_run", "later start, seconds", "`make run` to first answer, later", "s", 5, 3),
)
_COLUMNS: Final = (
    *("case", "requests/s", "ratio", "first target", "aim", "", "p50 ms", "p99 ms", "CPU µs"),
    *("SQL statements", "Valkey round trips"),
)
# Statements of SQL that a request may take, and round trips to Valkey: one of the limiter's, one of the cache's.
STATEMENTS: Final = {"ping": 0, "cached GET, hit": 0, "GET /user/me/": 1, "public profile, not cached": 1}
ROUND_TRIPS: Final = {"ping": 0, "cached GET, hit": 2, "GET /user/me/": 1, "public profile, not cached": 1}
_COUNTS: Final = (
    ("sql_statements", "SQL statements", STATEMENTS),
    ("valkey_round_trips", "Valkey round trips", ROUND_TRIPS),
)


def markdown(figures: Mapping[str, Any]) -> str:
    """A page of Markdown."""
    machine, versions, method = figures["machine"], figures["versions"], figures["method"]
    lines = [
        "# What was measured last",
        "",
        f"{figures['date']}, commit `{figures['commit']}`: {machine['processor']}, {machine['cores']} cores,"
        f" {machine['memory_gb']} GB, {machine['system']}, load {machine['load_before'][0]} before it began;"
        f" Python {versions['python']}, FastAPI {versions['fastapi']}, uvicorn {versions['uvicorn']}.",
        f"{method['rounds']} rounds of {method['seconds_per_case']:g} seconds, {method['connections']} connections.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_case(name, one) for name, one in figures["cases"].items()),
        "",
        "| | measured | first target | aim | |",
        "|---|---|---|---|---|",
        *(_other(figures, *other) for other in OTHERS),
        *(
            _count(figures["cases"], key, title, name, wanted)
            for key, title, all_wanted in _COUNTS
            for name, wanted in all_wanted.items()
        ),
        "",
    ]
    return "\n".join(lines)


def verdict(found: float, wanted: float | None, aim: float | None, *, more_is_better: bool) -> str:
    """Whether a figure reaches what is wanted of it; if not, by how much it misses that."""
    if wanted is None or aim is None:
        return ""
    sign = 1 if more_is_better else -1
    if sign * found >= sign * aim:
        return "aim met"
    if sign * found >= sign * wanted:
        return "first target met"
    return f"missed by {abs(found - wanted) / wanted:.0%}"


def _case(name: str, one: Mapping[str, Any]) -> str:
    wanted, aim = one.get("first_target"), one.get("aim")
    cells = (
        name,
        f"{one['requests_per_second']:,.0f}",
        f"{one['ratio']:.2f}",
        _cell(wanted, ".2f"),
        _cell(aim, ".2f"),
        verdict(one["ratio"], wanted, aim, more_is_better=True),
        f"{one['p50_ms']:.1f}",
        f"{one['p99_ms']:.1f}",
        _cell(one.get("cpu_us"), ".0f"),
        _cell(one.get("sql_statements")),
        _cell(one.get("valkey_round_trips")),
    )
    return f"| {' | '.join(cells)} |"


def _other(figures: Mapping[str, Any], part: str, name: str, title: str, unit: str, wanted: float, aim: float) -> str:
    found = figures.get(part, {}).get(name)
    if found is None:
        return f"| {title} | not measured | {wanted} {unit} | {aim} {unit} | |"
    met = verdict(found, wanted, aim, more_is_better=False)
    return f"| {title} | {found:.3g} {unit} | {wanted} {unit} | {aim} {unit} | {met} |"


def _count(cases: Mapping[str, Mapping[str, Any]], key: str, title: str, name: str, wanted: int) -> str:
    found = cases.get(name, {}).get(key)
    if found is None:
        return f"| {title}: {name} | not measured | {wanted} | | |"
    return f"| {title}: {name} | {found} | {wanted} | | {'met' if found <= wanted else 'missed'} |"


def _cell(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form)
