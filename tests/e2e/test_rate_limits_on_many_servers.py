"""Rate limits across four server processes: never one request too many, wherever it is asked and whenever."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from math import ceil
from typing import Any

import asyncpg
import httpx2
import pytest

from app.core.config import Settings
from app.core.utils.rate_limit.script import LONGEST_LOG, SUB_WINDOWS
from app.models.user import User
from tests.conftest import connect, opened_session
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, signed_in
from tests.http_lines import Answer, Host, Line, lines_to
from tests.processes import running_api

pytestmark = pytest.mark.anyio

SERVERS = 4
RUNS = 20
FEW, MANY = 50, 150  # limits: one that is kept as a log, one as sub-windows
MINUTE = 60
IN_FORCE = 2.0  # seconds after which a change is, on every server
MARGIN = 1.0  # seconds, for a machine that is busy with other tests
EVERY = 0.01  # seconds between two looks
DEFAULT = 30  # the limit of those without a tier
ME, TIERS = "user/me/", "tiers"

Clients = list[httpx2.AsyncClient]
Headers = dict[str, str]


@dataclass
class Person:
    """Somebody who is limited, and by what."""

    user: User
    headers: Headers
    limit: int
    period: int

    @property
    def late(self) -> float:
        """Seconds by which what was used can be free again later than a period after."""
        return self.period / SUB_WINDOWS if self.limit > LONGEST_LOG else 0


async def people(settings: Settings, limit: int, period: int = MINUTE, count: int = 1) -> list[Person]:
    """Users of a new tier with this limit. Before the servers start: they know it from then on."""
    async with opened_session(settings) as db:
        tier = await create_tier(db, f"{limit} in {period} for {count}")
        await create_rate_limit(db, tier, limit=limit, period=period)
        users = [await create_user(db, tier_id=tier.id) for _ in range(count)]
    return [Person(user, signed_in(user, settings), limit, period) for user in users]


async def person_without_tier(settings: Settings) -> Person:
    async with opened_session(settings) as db:
        user = await create_user(db)
    return Person(user, signed_in(user, settings), DEFAULT, MINUTE)


async def test_rate_limits_on_four_servers(
    settings: Settings, database: str, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """One test for all of it: four servers take as many seconds to start."""
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", str(DEFAULT))
    assert FEW <= LONGEST_LOG < MANY
    ada, bob, eve = await people(settings, limit=10, count=3)
    async with administration(settings, database) as admin:
        parts: list[partial[Coroutine[Any, Any, None]]] = [
            partial(exactly_the_limit_passes, await people(settings, FEW, count=RUNS), asked=4 * FEW),
            partial(exactly_the_limit_passes, await people(settings, MANY, count=3), asked=3 * MANY),
            partial(
                what_takes_its_time,
                around_edges=[*await people(settings, 10, period=2, count=8), *await people(settings, MANY, period=2)],
                waiting=[*await people(settings, 5, period=4, count=3), *await people(settings, MANY, period=4)],
            ),
            partial(requests_that_alternate_share_one_count, ada),
            partial(everybody_has_a_count_of_their_own, [ada, bob, await person_without_tier(settings)]),
            partial(a_change_is_in_force_on_every_server, await person_without_tier(settings), admin),
            partial(a_limit_lowered_below_what_is_used_refuses_at_once, eve, admin),
        ]
        with ExitStack() as stack:
            starting = (asyncio.to_thread(stack.enter_context, running_api()) for _ in range(SERVERS))
            async with clients_of(await asyncio.gather(*starting)) as clients:
                for part in parts:
                    with subtests.test(part.func.__name__):
                        await part(clients=clients)


@asynccontextmanager
async def clients_of(servers: Iterable[str]) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        clients = [httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=30) for url in servers]
        yield [await stack.enter_async_context(client) for client in clients]


# ---- Asking at once ----


def connected(clients: Clients, count: int) -> AbstractAsyncContextManager[list[Line]]:
    """So many connections, to one server after the other."""
    return lines_to(host_of(client) for client in islice(cycle(clients), count))


def host_of(client: httpx2.AsyncClient) -> Host:
    assert client.base_url.port is not None
    return client.base_url.host, client.base_url.port


async def ask(client: httpx2.AsyncClient, headers: Headers, path: str = ME) -> Answer:
    async with lines_to([host_of(client)]) as (line,):
        return await line.ask(f"/api/v1/{path}", headers)


async def ask_all_at_once(lines: Iterable[Line], headers: Headers, path: str = ME) -> list[Answer]:
    return await asyncio.gather(*(line.ask(f"/api/v1/{path}", headers) for line in lines))


def let_through(answers: Iterable[Answer]) -> list[Answer]:
    """Those that were not refused."""
    passed = []
    for answer in answers:
        assert answer.status in {200, 429}, answer
        if answer.status == 200:
            passed.append(answer)
        else:
            assert int(answer.headers["retry-after"]) > 0
            assert ";r=0;" in answer.headers["ratelimit"]
    return passed


# ---- So many, and not one more ----


async def exactly_the_limit_passes(persons: list[Person], *, asked: int, clients: Clients) -> None:
    async with connected(clients, asked) as lines:
        for person in persons:
            assert len(let_through(await ask_all_at_once(lines, person.headers))) == person.limit


async def what_takes_its_time(*, around_edges: list[Person], waiting: list[Person], clients: Clients) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(never_more_than_the_limit_in_any_period(around_edges, clients))
        tasks.create_task(who_waits_as_told_is_let_through(waiting, clients))


@dataclass
class Burst:
    at: float  # seconds after an edge
    size: float  # as a part of the limit
    passed: list[Answer] = field(default_factory=list)


async def never_more_than_the_limit_in_any_period(persons: list[Person], clients: Clients) -> None:
    """Around the edges that a clock's windows would have, and those of windows that begin with a request.

    Each person has other ones of the latter, an eighth of a period after the last one's.
    """
    period = persons[0].period
    edge = time.monotonic() + 0.5 + period - (time.time() + 0.5) % period
    await asyncio.gather(
        *(fire_around(edge + number * period / 8, person, clients) for number, person in enumerate(persons))
    )


async def fire_around(edge: float, person: Person, clients: Clients) -> None:
    bursts = [Burst(-0.15, 0.6), *(Burst(seconds, 1.2) for seconds in (0.05, 1.0, 1.9, 2.1))]
    async with connected(clients, int(1.2 * person.limit)) as lines:
        for burst in bursts:
            await asyncio.sleep(edge + burst.at - time.monotonic())
            asked = lines[: int(burst.size * person.limit)]
            burst.passed = let_through(await ask_all_at_once(asked, person.headers))
    passed = [answer for burst in bursts for answer in burst.passed]
    for first in passed:
        surely = [one for one in passed if first.sent <= one.sent and one.came < first.sent + person.period]
        assert len(surely) <= person.limit
    for number, burst in enumerate(bursts[1:], start=1):
        began = min(answer.sent for answer in burst.passed) if burst.passed else edge + burst.at
        earlier = [answer for burst in bursts[:number] for answer in burst.passed]
        perhaps_counted = [one for one in earlier if one.came + person.period + person.late >= began]
        assert len(burst.passed) >= person.limit - len(perhaps_counted), "nobody is refused what is free"


async def who_waits_as_told_is_let_through(persons: list[Person], clients: Clients) -> None:
    """A second earlier is too early. The more time has passed between the requests, the shorter is the rest of it."""
    for _ in range(3):  # On a busy machine, the too early one can be too late.
        checked = await asyncio.gather(
            *(wait_as_told(person, number * 0.1, clients) for number, person in enumerate(persons))
        )
        if any(checked):
            return
        await asyncio.sleep(max(person.period + person.late for person in persons))
    raise AssertionError("nobody was in time")


async def wait_as_told(person: Person, pause: float, clients: Clients) -> bool:
    """Whether there was time for the too early one."""
    if person.limit <= LONGEST_LOG:
        used = []
        for client in islice(cycle(clients), person.limit):
            used.append(await ask(client, person.headers))
            await asyncio.sleep(pause)
    else:
        async with connected(clients, person.limit) as lines:
            used = await ask_all_at_once(lines, person.headers)
    assert len(let_through(used)) == person.limit

    first_sent, first_came = min(one.sent for one in used), min(one.came for one in used)
    refused = await ask(clients[0], person.headers)
    if refused.came >= first_sent + person.period:
        return False  # By then, the first may be forgotten.
    assert refused.status == 429
    wait = int(refused.headers["retry-after"])
    shortest = first_sent + person.period - refused.came
    longest = first_came + person.period + person.late - refused.sent
    assert ceil(shortest) <= wait <= ceil(longest)

    await asyncio.sleep(refused.sent + wait - 1 - time.monotonic())
    early = await ask(clients[1], person.headers)
    in_time = early.came < first_sent + person.period
    assert early.status == 429 or not in_time
    await asyncio.sleep(refused.came + wait - time.monotonic())
    assert (await ask(clients[2], person.headers)).status == 200
    return in_time


# ---- Whose count it is ----


async def requests_that_alternate_share_one_count(ada: Person, *, clients: Clients) -> None:
    for number, client in enumerate(islice(cycle(clients), ada.limit), start=1):
        answer = await ask(client, ada.headers)
        assert answer.status == 200
        assert f";r={ada.limit - number};" in answer.headers["ratelimit"]
    await everywhere_refused(clients, ada.headers)


async def everywhere_refused(clients: Clients, headers: Headers, path: str = ME) -> None:
    for client in clients:
        assert (await ask(client, headers, path)).status == 429


async def everybody_has_a_count_of_their_own(persons: list[Person], *, clients: Clients) -> None:
    ada, bob, without_tier = persons
    await everywhere_refused(clients, ada.headers)
    for headers, limit in ((bob.headers, bob.limit), ({}, DEFAULT), (without_tier.headers, DEFAULT)):
        async with connected(clients, limit + SERVERS) as lines:
            assert len(let_through(await ask_all_at_once(lines, headers, TIERS))) == limit
        await everywhere_refused(clients, headers, TIERS)


# ---- Changes ----


@dataclass
class Administration:
    """Changes rules through one of the servers, or past all of them."""

    headers: Headers
    db: asyncpg.Connection

    async def ask(self, client: httpx2.AsyncClient, method: str, path: str, values: object = None) -> httpx2.Response:
        answer = await client.request(method, path, json=values, headers=self.headers)
        assert answer.is_success, answer.text
        return answer


@asynccontextmanager
async def administration(settings: Settings, database: str) -> AsyncIterator[Administration]:
    async with opened_session(settings) as session:
        tier = await create_tier(session, "staff")
        await create_rate_limit(session, tier, limit=100_000)
        superuser = await create_superuser(session, tier_id=tier.id)
    db = await connect(database)
    try:
        yield Administration(signed_in(superuser, settings), db)
    finally:
        await db.close()


async def a_change_is_in_force_on_every_server(person: Person, admin: Administration, *, clients: Clients) -> None:
    server, rules = clients[0], "tier/changing/rate_limit"
    told = partial(everywhere_told, clients, person.headers)
    tier = (await admin.ask(server, "POST", "tier", {"name": "changing"})).json()["id"]
    all_ = {"name": "all", "path": "*", "limit": 5000, "period": 60}
    mine = {"name": "mine", "path": f"/api/v1/{ME}", "limit": 4000, "period": 60}
    await admin.ask(server, "POST", rules, all_)
    await told('"default";q=30;w=60')

    await admin.ask(server, "PATCH", f"user/{person.user.username}/tier", {"tier_id": tier})
    await told('"all";q=5000;w=60', changed=server)
    rule = (await admin.ask(server, "POST", rules, mine)).json()["id"]
    await told('"mine";q=4000;w=60', changed=server)
    await admin.ask(server, "PATCH", f"{rules}/{rule}", {"limit": 3000, "period": 30})
    await told('"mine";q=3000;w=30', changed=server)
    await admin.ask(server, "DELETE", f"{rules}/{rule}")
    await told('"all";q=5000;w=60', changed=server)

    insert = 'INSERT INTO rate_limit (tier_id, name, path, "limit", period) VALUES ($1, $2, $3, $4, $5)'
    await admin.db.execute(insert, tier, *mine.values())
    await told('"mine";q=4000;w=60')
    await admin.db.execute("""UPDATE rate_limit SET "limit" = 2000 WHERE name = 'mine'""")
    await told('"mine";q=2000;w=60')
    await admin.db.execute("DELETE FROM rate_limit WHERE name = 'mine'")
    await told('"all";q=5000;w=60')
    await admin.db.execute('UPDATE "user" SET tier_id = NULL WHERE id = $1', person.user.id)
    await told('"default";q=30;w=60')


async def everywhere_told(
    clients: Clients, headers: Headers, policy: str, changed: httpx2.AsyncClient | None = None
) -> list[Answer]:
    """Returns the first answers by the new rule: at once where it was changed, elsewhere within two seconds."""
    began = time.monotonic()
    if changed is not None:
        assert (await ask(changed, headers)).headers["ratelimit-policy"] == policy
    answers = await asyncio.gather(*(when_told(client, headers, policy) for client in clients))
    assert max(answer.sent for answer in answers) - began < IN_FORCE + MARGIN
    return answers


async def when_told(client: httpx2.AsyncClient, headers: Headers, policy: str) -> Answer:
    async with asyncio.timeout(10):
        while (answer := await ask(client, headers)).headers["ratelimit-policy"] != policy:  # noqa: ASYNC110
            await asyncio.sleep(EVERY)
    return answer


async def a_limit_lowered_below_what_is_used_refuses_at_once(
    eve: Person, admin: Administration, *, clients: Clients
) -> None:
    server = clients[0]
    for client in clients * 2:
        assert (await ask(client, eve.headers)).status == 200
    tier, rule = await admin.db.fetchrow(
        "SELECT tier.name, rate_limit.id FROM rate_limit JOIN tier ON tier.id = tier_id WHERE tier_id = $1",
        eve.user.tier_id,
    )

    await admin.ask(server, "PATCH", f"tier/{tier}/rate_limit/{rule}", {"limit": 5})
    answers = await everywhere_told(clients, eve.headers, '"all";q=5;w=60', changed=server)
    assert let_through(answers) == []
    await everywhere_refused(clients, eve.headers)

    await admin.ask(server, "PATCH", f"tier/{tier}/rate_limit/{rule}", {"limit": 20})
    answers = await everywhere_told(clients, eve.headers, '"all";q=20;w=60', changed=server)
    assert let_through(answers) == answers
