"""How many SQL statements and Valkey commands a request costs, and how often it waits for either.

Each case is asked twenty times, one at a time, of an app that reaches both through `bench.wire`. What the app's own
tasks ask meanwhile falls among some of them: the count that most have is the request's.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mode
from typing import Final

import httpx2

from bench.cases import CASES, Case
from bench.people import People
from bench.servers import Server, running
from bench.wire import Counts, counting

TIMES: Final = 20
AFTERWARDS: Final = 0.02  # seconds for what is sent once it is answered
NAMES: Final = ("sql_statements", "transaction_statements", "sql_round_trips", "valkey_commands", "valkey_round_trips")


def count(people: People, cases: tuple[Case, ...] = CASES) -> dict[str, dict[str, int]]:
    """By case: `sql_statements`, `transaction_statements` (BEGIN and the like) and so on, of one request."""
    found: dict[str, dict[str, int]] = {}
    for module, cached in (("src.app.main:app", True), ("bench.uncached:app", False)):
        wanted = [case for case in cases if case.cached is cached]
        if wanted:
            with _counted_app(module) as (server, counts):
                found |= {case.name: _count(case, server, people, counts) for case in wanted}
    return found


@contextmanager
def _counted_app(module: str) -> Iterator[tuple[Server, Counts]]:
    ports = int(os.environ["POSTGRES_PORT"]), int(os.environ["REDIS_CACHE_PORT"])
    with counting(*ports) as (counts, postgres_port, valkey_port):
        environment = {f"REDIS_{use}_PORT": str(valkey_port) for use in ("CACHE", "QUEUE", "RATE_LIMIT")}
        with running(module, environment=environment | {"POSTGRES_PORT": str(postgres_port)}) as server:
            yield server, counts


def _count(case: Case, server: Server, people: People, counts: Counts) -> dict[str, int]:
    asked = case.asked(server, people)
    headers = dict(asked.headers)
    if asked.body is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    seen = []
    with httpx2.Client(timeout=30) as client:
        for number in range(TIMES + 3):
            counts.clear()
            client.request(asked.method, asked.url, headers=headers, content=asked.body).raise_for_status()
            time.sleep(AFTERWARDS)
            if number >= 3:  # The first ones prepare statements, and fill the cache.
                seen.append(counts.as_tuple())
    return dict(zip(NAMES, mode(seen), strict=True))
