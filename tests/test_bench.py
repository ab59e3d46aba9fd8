"""`make bench`: its arithmetic, what it says when wrk is missing, and one run in earnest, of seconds."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.__main__ import main
from bench.load import MISSING, Asked, Measured, command, parse
from bench.others import look_at, others
from bench.page import page
from bench.ratios import median_of, rounds
from bench.report import case_figures
from bench.servers import server
from bench.summary import verdict
from bench.wire import Counts, PostgresReader, ValkeyReader

from scripts.embedded import free_port
from tests.processes import BIN, ROOT

SHOWN = """Running 5s test @ http://127.0.0.1:1/bare
  1 threads and 32 connections
  Latency Distribution
     50%  811.00us
     75%    2.71ms
     90%    3.01ms
     99%    1.03s 
  50000 requests in 5.00s, 7.00MB read
Requests/sec:  10000.00
Transfer/sec:      1.40MB
"""  # noqa: W291 -- wrk's own


# ---- Arithmetic ----


def test_ratios_are_those_of_their_own_round() -> None:
    base = [Measured(1000, 1, 2), Measured(2000, 1, 2), Measured(4000, 1, 2)]  # a machine that became faster
    case = [Measured(500, 3, 9), Measured(1000, 2, 8), Measured(1000, 4, 7)]
    found = median_of(case, base)
    assert (found.rate, found.ratio, found.p50, found.p99) == (1000, 0.5, 3, 8)


def test_rounds_ask_all_in_turn_and_forget_the_first() -> None:
    asked: list[str] = []
    rates: Iterator[int] = iter([1, 1, 100, 50, 200, 50, 400, 300])

    def load(request: Asked, seconds: float) -> Measured:
        asked.append(request.url)
        return Measured(next(rates), 1, 1, cpu=5)

    found = rounds({"base": Asked("b"), "case": Asked("c")}, "base", count=3, seconds=9, load=load)
    assert asked == ["b", "c"] * 4
    assert found["base"].ratio == 1
    assert (found["case"].rate, found["case"].ratio, found["case"].cpu) == (50, 0.5, 5)


def test_wrk_is_read_in_all_of_its_units() -> None:
    assert parse(SHOWN, "it", computed=2.5) == Measured(10_000, 0.811, 1030, 50)
    assert parse(SHOWN, "it").cpu is None


@pytest.mark.parametrize("problem", ["  Non-2xx or 3xx responses: 7", "  Socket errors: connect 0, read 1, write 0"])
def test_a_load_of_which_anything_failed_is_no_measurement(problem: str) -> None:
    with pytest.raises(SystemExit, match="it"):
        parse(SHOWN + problem, "it")


def test_a_load_without_an_answer_is_no_measurement() -> None:
    with pytest.raises(SystemExit, match="no answer"):
        parse(SHOWN.replace("50000 requests in", "0 requests in"), "it")


# ---- Somebody else's server ----


def test_what_another_server_is_asked() -> None:
    found = others("http://x:1/api/", ["/a?b=c", "d"], ["A: b:c"], "post")
    assert list(found) == ["http://x:1/api/a?b=c", "http://x:1/api/d"]
    assert found["http://x:1/api/d"] == Asked("http://x:1/api/d", "POST", {"A": "b:c"})


@pytest.mark.parametrize(
    ("url", "header", "said"),
    [
        ("x:1", "A: b", "begins with http://"),
        ("ftp://x", "A: b", "begins with http://"),
        ("http://x", "A", "header is `Name: value`"),
        ("http://x", ": b", "header is `Name: value`"),
    ],
)
def test_what_is_no_url_or_header_is_said(url: str, header: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        others(url, ["/"], [header], "GET")


def test_another_server_is_looked_at_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")  # wrk goes by no proxy.
    with pytest.raises(SystemExit, match="no answer"):
        look_at(Asked(f"http://127.0.0.1:{free_port()}/"))
    with server("bench.bare:app") as address:
        look_at(Asked(f"{address}/bare"))
        for asked, said in (
            (Asked(f"{address}/nowhere"), "GET is answered with 404"),
            (Asked(f"{address}/bare", "POST"), "POST is answered with 405"),
            (Asked(f"{address}/bare/"), "leads to http://.*/bare. Give that path"),
            (Asked(f"{address}/bare", headers={"A": "\n"}), "no answer"),
        ):
            with pytest.raises(SystemExit, match=said):
                look_at(asked)


@pytest.mark.parametrize(
    "words",
    [
        "--path /x",
        "--case nothing",
        "--growth --url http://x",
        "--growth --case ping",
        "--growth --path /x",
        "--url x",
        "--url ''",
    ],
)
def test_words_that_go_with_nothing_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr("bench.__main__.find_wrk", str)
    with pytest.raises(SystemExit) as refused:
        main(shlex.split(words))
    assert len(str(refused.value).splitlines()) == 1


# ---- What is counted on the wire ----


def message(kind: bytes, content: bytes = b"") -> bytes:
    return kind + (len(content) + 4).to_bytes(4) + content


def test_statements_are_counted_wherever_the_bytes_are_cut() -> None:
    tls = (8).to_bytes(4) + (80877103).to_bytes(4)
    startup = (12).to_bytes(4) + (196608).to_bytes(4) + bytes(4)
    sent = tls + startup + message(b"Q", b"BEGIN;\0") + message(b"P", b"SELECT 1") + message(b"D") + message(b"H")
    sent += message(b"B") + message(b"E") + message(b"S") + message(b"Q", b"SELECT 1\0") + message(b"Q", b"commit\0")
    for size in (1, 5, len(sent)):
        reader = PostgresReader(counts := Counts())
        for start in range(0, len(sent), size):
            reader.feed(sent[start : start + size])
        assert (counts.statements, counts.transactions, counts.sql_trips) == (2, 2, 5)


def test_commands_that_are_sent_at_once_are_one_round_trip() -> None:
    reader = ValkeyReader(counts := Counts())
    reader.feed(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n")
    reader.feed(b"*1\r\n$4\r\nPING\r\n")
    assert (counts.commands, counts.valkey_trips) == (3, 2)


# ---- The page ----


def test_the_page_says_what_was_measured_and_takes_no_name_for_markup() -> None:
    cases = case_figures({"a <b> case": median_of([Measured(5, 1, 2)], [Measured(10, 1, 1)])}, {})
    shown = page({"date": "today", "commit": "abc", "cases": cases}, None)
    assert "a &lt;b&gt; case" in shown
    assert "a <b> case" not in shown
    assert ">0.50</text>" in shown
    assert "http" not in shown.replace("http://www.w3.org/2000/svg", "")  # Nothing is loaded from anywhere.


def test_what_is_missed_is_said_with_how_much() -> None:
    assert verdict(0.45, 0.50, 0.75, more_is_better=True) == "missed by 10%"
    assert verdict(0.50, 0.50, 0.75, more_is_better=True) == "first target met"
    assert verdict(20, 50, 20, more_is_better=False) == "aim met"
    assert verdict(75, 50, 20, more_is_better=False) == "missed by 50%"
    assert verdict(1, None, None, more_is_better=True) == ""


# ---- In earnest ----


def test_it_says_what_to_install_when_wrk_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run([BIN / "python", "-m", "bench"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == MISSING


@pytest.fixture
def wrk() -> None:
    """Skips where it is not installed."""
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")


@pytest.mark.usefixtures("wrk")
def test_a_form_is_sent_as_one() -> None:
    words = command(Asked("http://x/login", "POST", {"A": "b"}, "user=me", connections=7), 0.2)
    assert "-c7" in words
    assert words[words.index("-H") + 1] == "A: b"
    assert words[-5:] == ["http://x/login", "--", "POST", "user=me", "application/x-www-form-urlencoded"]


@pytest.mark.usefixtures("wrk")
@pytest.mark.alone
def test_a_quick_run_measures_all_kinds_of_things(tmp_path: Path) -> None:
    """Three cases of nine: the others are asked in the same way, and take as long."""
    cases = ("--case", "ping", "--case", "cached GET", "--case", "/me/")
    quick = [str(BIN / "python"), "-m", "bench", "--quick", "--out", str(tmp_path), *cases]
    done = subprocess.run(quick, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "latest.json").read_text())
    found = figures["cases"]
    assert found["bare FastAPI route"]["ratio"] == 1
    assert all(case["ratio"] > 0 for case in found.values())
    assert all(case["p50_ms"] <= case["p99_ms"] for case in found.values())
    # What is exact: who asks is one statement, the limiter one command, and a hit is no statement at all.
    sql = {name: case.get("sql_statements") for name, case in found.items()}
    assert (sql["ping"], sql["cached GET, hit"], sql["GET /user/me/"]) == (0, 0, 1)
    assert found["GET /user/me/"]["valkey_commands"] == 1
    assert found["cached GET, hit"]["valkey_commands"] == 2
    trips = {name: case.get("valkey_round_trips") for name, case in found.items()}
    assert (trips["ping"], trips["cached GET, hit"], trips["GET /user/me/"]) == (0, 2, 1)
    assert figures["jobs"]["done_per_second"] > 0
    assert 0 < figures["make_run"]["later start, seconds"] < 60
    assert figures["health_while_logging_in"]["logins_per_second"] > 0
    page = (tmp_path / "latest.md").read_text()
    assert "| ping |" in page
    assert "| Valkey round trips: cached GET, hit | 2 | 2 | | met |" in page
    assert "<svg" in (tmp_path / "index.html").read_text()
