"""Plots: their arithmetic, and what stands in the page."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import inf, nan
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jinja2 import Environment, FileSystemLoader

import app.admin
from app.admin.figures import duration, figure, round_step
from app.admin.plots import TONES, Plot, Series, tone_of

START = datetime(2026, 1, 1, 13, 8, tzinfo=UTC)
TEMPLATES = Path(app.admin.__file__).parent / "templates"


def plot_of(
    *columns: Sequence[float | None], minutes: int | None = None, stacked: bool = False, title: str = "T"
) -> Plot:
    series = [Series(f"series {n}", column, tone_of(n)) for n, column in enumerate(columns)]
    count = minutes if minutes is not None else len(columns[0])
    return Plot(title, "per minute", series, [START + timedelta(minutes=n) for n in range(count)], stacked)


def drawn(plot: Plot) -> str:
    """The page's part with this plot."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return str(environment.from_string('{% from "console/_plot.html" import plot %}{{ plot(it) }}').render(it=plot))


def parsed(page: str) -> ElementTree.Element:
    """The same, well-formed."""
    return ElementTree.fromstring(page)  # noqa: S314 -- it is our own


@pytest.mark.parametrize(
    ("least", "step"),
    [(0, 1), (0.3, 0.5), (1, 1), (1.01, 2), (2.1, 5), (5.5, 10), (20, 20), (37, 50), (2.5e12, 5e12), (0.00012, 0.0002)],
)
def test_steps_are_round(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)


@pytest.mark.parametrize("factor", [10.0**n for n in range(-9, 15)])
def test_the_axis_is_round_and_holds_every_value_in_few_steps(factor: float) -> None:
    for highest in (1, 1.7, 2, 3.3, 4, 5, 7.9, 9.99):
        plot = plot_of([0, highest * factor])
        assert highest * factor <= plot.top * (1 + 1e-9)
        assert 2 <= len(plot.y_ticks) <= 5
        assert f"{plot.step:e}"[0] in "125"


def test_whole_numbers_have_whole_marks() -> None:
    assert [tick.label for tick in plot_of([0, 1]).y_ticks] == ["0", "1"]
    assert [tick.label for tick in plot_of([0, 3]).y_ticks] == ["0", "1", "2", "3"]
    assert [tick.label for tick in plot_of([0, 0.75]).y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8"]


def test_marks_go_from_the_lower_end_to_the_upper() -> None:
    ticks = plot_of([0, 4]).y_ticks
    assert [tick.at for tick in ticks] == [100, 75, 50, 25, 0]


def test_nothing_but_zeros_lies_on_the_axis() -> None:
    plot = plot_of([0, 0])
    assert (plot.top, plot.paths, plot.is_empty) == (1, ["M25 100L75 100"], False)
    assert plot_of([0, 0], stacked=True).bars == [[]]


def test_a_line_is_broken_where_nothing_is_known() -> None:
    plot = plot_of([4, None, 2, 4, None])
    assert plot.paths == ["M10 0M50 50L70 0"]
    assert plot.dots == ["M10 0h0"]


def test_one_number_is_a_dot() -> None:
    plot = plot_of([5])
    assert (plot.dots, plot.wide, plot.latest) == (["M50 16.667h0"], 100, ["no data"])


def test_nothing_is_known() -> None:
    plot = plot_of([None, None], [None, None])
    assert plot.is_empty
    assert (plot.paths, plot.top, plot.latest) == (["", ""], 1, ["no data", "no data"])
    assert plot.summary == "T, per minute. series 0: no data. series 1: no data."
    assert "No data" in drawn(plot)


@pytest.mark.parametrize("stacked", [False, True])
def test_there_is_no_minute_or_no_series(stacked: bool) -> None:
    empty = plot_of([], stacked=stacked)
    assert (empty.is_empty, empty.x_ticks, empty.rows, empty.hints) == (True, [], [], [])
    nobody = Plot("Nobody", "%", [], [START], stacked)
    assert nobody.summary == "Nobody, %. No data."
    assert "No data" in drawn(empty)
    assert "No data" in drawn(nobody)


def test_what_is_no_number_is_not_known_and_nothing_is_below_zero() -> None:
    assert plot_of([nan, inf, -inf, -3, 2]).columns == [[None, None, None, 0, 2]]


def test_values_are_as_many_as_there_are_minutes() -> None:
    assert plot_of([1, 2, 3], [1], minutes=2).columns == [[1, 2], [1, None]]


def test_bars_stand_on_each_other() -> None:
    lower, upper = plot_of([1, 0, 3], [1, 4, None], stacked=True).bars
    assert [(bar.y, bar.height) for bar in lower] == [(75, 25), (25, 75)]
    assert [(bar.y, bar.height) for bar in upper] == [(50, 25), (0, 100)]
    assert [round(bar.x + bar.width / 2, 2) for bar in upper] == [16.67, 50]


def test_a_stack_is_no_higher_than_the_axis() -> None:
    plot = plot_of([3, 4], [3, 8], stacked=True)
    assert plot.top >= 12
    assert all(bar.y >= 0 for bars in plot.bars for bar in bars)


@pytest.mark.parametrize(
    ("minutes", "labels"), [(1, ["13:08"]), (60, ["13:10", "13:20", "13:30", "13:40", "13:50", "14:00"])]
)
def test_times_are_full_and_few(minutes: int, labels: list[str]) -> None:
    assert [tick.label for tick in plot_of([1] * minutes).x_ticks] == labels


@pytest.mark.parametrize("minutes", [2, 7, 12, 45, 61, 300, 1440, 5000])
def test_no_more_times_than_fit_on_a_phone(minutes: int) -> None:
    assert len(plot_of([1] * minutes).x_ticks) <= 7


def test_what_it_says() -> None:
    plot = plot_of([1, 7, None], [0, 0, 0])
    assert plot.summary == (
        "T, per minute. series 0: last 7, highest 7 at 13:09 UTC. series 1: last 0, highest 0 at 13:08 UTC."
    )
    assert plot.rows == [("13:10, not over", ["no data", "0"]), ("13:09", ["7", "0"]), ("13:08", ["1", "0"])]
    assert plot.hints[1:] == [
        (33.333, "UTC 13:09: series 0 7, series 1 0"),
        (66.667, "UTC 13:10, not over: series 0 no data, series 1 0"),
    ]


@pytest.mark.parametrize("stacked", [False, True])
def test_the_last_number_is_that_of_the_last_whole_minute(stacked: bool) -> None:
    """The last minute is not over: of what will be 600, it may have 3 by now. It is drawn, and seen to be another."""
    plot = plot_of([600, 601, 3], [None, None, 4], [5, None, None], stacked=stacked)
    assert plot.latest == ["601", "no data", "no data"]
    assert "series 0: last 601, highest 601" in plot.summary
    unfinished = [part for part in parsed(drawn(plot)).findall("svg/rect") if part.get("class") == "plot-unfinished"]
    assert [(part.get("x"), part.get("width")) for part in unfinished] == [("66.667%", "33.333%")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (3, "3"),
        (0.1 + 0.2, "0.3"),
        (12.345, "12.3"),
        (123.45, "123"),
        (9999, "9,999"),
        (12_340, "12.3 k"),
        (1_500_000, "1.5 M"),
        (2.5e9, "2.5 G"),
        (7e12, "7 T"),
        (1e300, "1.00e+300"),
        (None, "no data"),
    ],
)
def test_numbers_in_words(value: float | None, words: str) -> None:
    assert figure(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (1.26, "1.3 s"), (61.4, "61 s"), (150, "2 min"), (7_300, "2 h"), (200_000, "2 days")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("stacked", [False, True])
def test_a_drawing_has_words_beside_its_colours(stacked: bool) -> None:
    plot = plot_of([1, 2], [3, None], stacked=stacked)
    page = parsed(drawn(plot))
    [drawing] = page.findall("svg")
    assert (drawing.get("role"), drawing.get("aria-label")) == ("img", plot.summary)
    legend = [" ".join("".join(item.itertext()).split()) for item in page.findall("ul/li")]
    assert legend == ["series 0 1", "series 1 3"]
    signs = [item.find("svg/rect" if stacked else "svg/path") for item in page.findall("ul/li")]
    kinds = [(sign.get("fill") or sign.get("class")) if sign is not None else None for sign in signs]
    assert len({re.sub(r"tone-\w+", "", kind or "") for kind in kinds}) == 2, "a pattern or a dash of its own"
    headings = page.findall("details//thead//th")
    assert [(heading.text, heading.get("scope")) for heading in headings] == [
        ("UTC", "col"),
        ("series 0", "col"),
        ("series 1", "col"),
    ]
    cells = [cell.text for cell in page.findall("details//tbody//td")]
    assert cells == ["2", "no data", "1", "3"]


def test_what_it_is_named_is_text() -> None:
    hostile = '"><script>fail()</script>'
    plot = Plot(hostile, hostile, [Series(hostile, [1.5], "red")], [START], True)
    page = drawn(plot)
    assert "<script" not in page
    assert not re.search(r"\s(style|on\w+)=", page), "the policy forbids it"
    assert re.fullmatch(r"[a-z0-9-]+", plot.key)
    assert parsed(page).tag == "figure"


def test_patterns_of_two_plots_are_told_apart() -> None:
    page = drawn(plot_of([1], [2], stacked=True, title="One")) + drawn(plot_of([1], [2], stacked=True, title="Other"))
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 4
    assert set(re.findall(r"url\(#([^)]+)\)", page)) == set(ids)


def test_every_tone_has_a_colour_for_light_and_dark() -> None:
    css = (TEMPLATES.parent / "static" / "console" / "console.css").read_text()
    assert [css.count(f".tone-{tone} {{ --tone:") for tone in TONES] == [2] * len(TONES)
    assert [tone_of(n) for n in (0, 7, 8)] == [TONES[0], TONES[7], TONES[0]]
