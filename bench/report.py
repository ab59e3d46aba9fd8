"""What was measured, as lines for people, and as files: figures, a page with plots, and what is met."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.cases import CASES
from bench.machine import ROOT
from bench.page import page
from bench.ratios import Found
from bench.summary import markdown

RESULTS: Final = ROOT / "bench" / "results"
LATEST: Final = "latest.json"
GROWTH: Final = "growth.json"
PAGE: Final = "index.html"
SUMMARY: Final = "latest.md"


def case_figures(found: Mapping[str, Found], counted: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    """A case's figures, its targets among them, by its name."""
    targets = {case.name: {"first_target": case.first, "aim": case.aim} for case in CASES}
    return {
        name: {
            "requests_per_second": round(one.rate, 1),
            "ratio": round(one.ratio, 3),
            "p50_ms": round(one.p50, 2),
            "p99_ms": round(one.p99, 2),
            "cpu_us": None if one.cpu is None else round(one.cpu, 1),
            **targets.get(name, {}),
            **counted.get(name, {}),
        }
        for name, one in found.items()
    }


def table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """The cases' figures in lines."""
    width = max([30, *map(len, cases)])
    head = f"{'':{width}} {'requests/s':>10} {'ratio':>6} {'target':>6} {'aim':>6} {'p50 ms':>8} {'p99 ms':>8}"
    head += f" {'CPU us':>7} {'SQL':>4} {'Valkey':>6}"
    return "\n".join([head, *(_line(f"{name:{width}}", one) for name, one in cases.items())])


def _line(name: str, one: Mapping[str, Any]) -> str:
    wanted = " ".join(f"{_or_blank(one.get(key), '.2f'):>6}" for key in ("first_target", "aim"))
    counted = f"{_or_blank(one.get('sql_statements')):>4} {_or_blank(one.get('valkey_round_trips')):>6}"
    return (
        f"{name} {one['requests_per_second']:10,.0f} {one['ratio']:6.2f} {wanted}"
        f" {one['p50_ms']:8.2f} {one['p99_ms']:8.2f} {_or_blank(one.get('cpu_us'), '.0f'):>7} {counted}"
    )


def _or_blank(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form)


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Figures of three digits, so that a file of them can be read."""
    return {name: value if value is None else float(f"{value:.4g}") for name, value in values.items()}


def write(name: str, figures: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes figures to a file of the folder, and what is made of them anew. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    latest = read(LATEST, folder)
    (folder / PAGE).write_text(page(latest, read(GROWTH, folder)))
    if latest is not None:
        (folder / SUMMARY).write_text(markdown(latest))
    return file


def read(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What was written to a file of the folder; None without it."""
    try:
        figures: dict[str, Any] = json.loads((folder / name).read_text())
    except FileNotFoundError:
        return None
    return figures
