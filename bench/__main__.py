"""What requests, jobs and pages cost, next to a bare FastAPI route: `make bench` (docs/benchmarks.md).

One server process on the first core; the load generator (wrk), PostgreSQL and Valkey on the last. A round that warms
up, then all cases in turn, several rounds; medians of the ratios to the bare route of the same round.

`--url` has somebody else's server measured in the same rounds: start it first, and give its paths.
`--growth` shows how cost grows with users, rules and processes.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.cases import CASES
from bench.load import Asked, find_wrk
from bench.machine import facts
from bench.others import look_at, others
from bench.report import GROWTH, LATEST, RESULTS, case_figures, table, write


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes the figures down. Raises: SystemExit."""
    given = _arguments().parse_args(words)
    find_wrk()
    try:
        if given.growth:
            _growth(given)
        else:
            _standard(given)
    except KeyboardInterrupt:  # What was started is stopped by now.
        sys.exit(128 + signal.SIGINT)


def _arguments() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, help="after the one that warms up; 5, and 3 with --growth")
    found.add_argument("--seconds", type=float, help="of each case in each round; 5, and 3 with --growth")
    found.add_argument("--case", action="append", help="only cases with this in their name; can be repeated")
    found.add_argument("--url", help="another server, such as http://127.0.0.1:8000")
    found.add_argument("--path", action="append", help="with --url: what to ask it, such as /health; can be repeated")
    found.add_argument("--header", action="append", help="with --url: such as 'Authorization: Bearer ...'; repeatable")
    found.add_argument("--method", help="with --url: GET, unless you say otherwise")
    found.add_argument("--growth", action="store_true", help="how cost grows")
    found.add_argument(
        "--quick", action="store_true", help="whether it works, in a minute; the figures are worth nothing"
    )
    found.add_argument(
        "--out", type=Path, help=f"the folder to write to; {RESULTS.name}/ beside this, or none with --url"
    )
    return found


def _standard(given: argparse.Namespace) -> None:
    cases = tuple(case for case in CASES if not given.case or any(part in case.name for part in given.case))
    if not cases:
        raise SystemExit(f"--case: none has that in its name. There are: {', '.join(case.name for case in CASES)}.")
    asked = _others(given)
    from bench import standard  # imports the app

    extent = standard.QUICK if given.quick else standard.Extent()
    extent = replace(extent, rounds=given.rounds or extent.rounds, seconds=given.seconds or extent.seconds)
    figures = standard.measure(extent, cases, asked)
    print(table(figures["cases"]))
    for part in ("memory_mb", "health_while_logging_in", "jobs", "make_run"):
        for name, value in figures.get(part, {}).items():
            print(f"{part.replace('_', ' '):24} {name.replace('_', ' '):30} {value:10,.4g}")
    whole = not (asked or given.case or given.quick)
    if whole or given.out:
        print(f"Written to {write(LATEST, figures, given.out or RESULTS)}")
    if whole and (status := standard.console()):
        sys.exit(status)


def _others(given: argparse.Namespace) -> dict[str, Asked]:
    """What the other server is asked, and answers. Raises: SystemExit when it does not, or when there is none."""
    if given.url is None:
        if given.path or given.header or given.method:
            raise SystemExit("--path, --header and --method are about the server that --url names.")
        return {}
    found = others(given.url, given.path or ("/",), given.header or (), given.method or "GET")
    for asked in found.values():
        look_at(asked)
    return found


def _growth(given: argparse.Namespace) -> None:
    if given.url is not None or given.case or given.path or given.header or given.method:
        raise SystemExit("--growth has cases of its own, and no --url, --path, --header, --method or --case.")
    from bench import growth  # imports the app

    users = growth.USERS[:2] if given.quick else growth.USERS
    figures = facts()
    usual = 1 if given.quick else 3
    rounds, seconds = given.rounds or usual, given.seconds or usual
    figures["method"] = {"rounds": rounds, "seconds_per_case": seconds}
    grown = growth.grow(rounds, seconds, users=users)
    print(growth.table(grown))
    figures["growth"] = {
        what: {str(size): case_figures(found, {}) for size, found in sizes.items()} for what, sizes in grown.items()
    }
    if given.out or not given.quick:
        print(f"Written to {write(GROWTH, figures, given.out or RESULTS)}")


if __name__ == "__main__":
    main()
