"""How cost grows: `make bench ARGS=--growth`. 1,000 to 1,000,000 users, 1 to 1,000 rules, 1 to 4 processes."""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from bench.cases import BARE, Case, requests
from bench.cases import bare as asked_bare
from bench.people import USERNAME, People, add_rules, fill, sign_up
from bench.ratios import Found, rounds
from bench.servers import running, services

USERS: Final = (1_000, 10_000, 100_000, 1_000_000)
RULES: Final = (1, 10, 100, 1_000)
PROCESSES: Final = (1, 2, 4)

ME: Final = Case("GET /user/me/", "user/me/", signed_in=True)
PING: Final = Case("ping", "health")
PROFILE: Final = Case("public profile, not cached", f"user/{USERNAME}", cached=False)
FIRST_PAGE: Final = Case("first page of 10 users", "users?items_per_page=10")
LAST_PAGE: Final = "last page of 10 users"

Grown = dict[int, dict[str, Found]]


def grow(count: int, seconds: float, *, users: tuple[int, ...] = USERS) -> dict[str, Grown]:
    """By what grows and how far: the cases' figures, each next to a bare route's of the same round."""
    with services():
        with running("src.app.main:app") as app:
            people = sign_up(app.address)
        return {
            "users": {n: _with_users(n, people, count, seconds) for n in users},
            "rules": {n: _with_rules(n, people, count, seconds) for n in RULES},
            "processes": {n: _with_processes(n, people, count, seconds) for n in PROCESSES},
        }


def _with_users(users: int, people: People, count: int, seconds: float) -> dict[str, Found]:
    fill(users)
    last = Case(LAST_PAGE, f"users?items_per_page=10&page={max(1, users // 10)}")
    return _measured((ME, PROFILE, FIRST_PAGE, last), people, count, seconds, alone={FIRST_PAGE.name, LAST_PAGE})


def _with_rules(rules: int, people: People, count: int, seconds: float) -> dict[str, Found]:
    add_rules(rules)
    return _measured((ME,), people, count, seconds)


def _with_processes(processes: int, people: People, count: int, seconds: float) -> dict[str, Found]:
    return _measured((PING, ME), people, count, seconds, workers=processes)


def _measured(
    cases: tuple[Case, ...],
    people: People,
    count: int,
    seconds: float,
    *,
    workers: int | None = None,
    alone: Collection[str] = (),
) -> dict[str, Found]:
    """`alone`: asked by one connection. Of a million rows, 32 at once would wait too long for one of PostgreSQL's."""
    with ExitStack() as stack:
        bare = stack.enter_context(running("bench.bare:app", workers=workers))
        app = stack.enter_context(running("src.app.main:app", workers=workers))
        uncached = app
        if not all(case.cached for case in cases):
            uncached = stack.enter_context(running("bench.uncached:app", workers=workers))
        asked = {BARE: asked_bare(bare), **requests(cases, app, uncached, people)}
        asked |= {name: replace(asked[name], connections=1) for name in alone}
        return rounds(asked, BARE, count=count, seconds=seconds)


def table(grown: dict[str, Grown]) -> str:
    """The figures in lines."""
    lines = []
    for what, sizes in grown.items():
        for size, found in sizes.items():
            lines += [
                f"{size:9,} {what:10} {name:30} {one.rate:9.0f} requests/s  {one.ratio:5.2f}  p99 {one.p99:7.1f} ms"
                for name, one in found.items()
            ]
    return "\n".join(lines)
