"""What a commit makes wrong is dropped, whatever happens in between; until then nothing stored is trusted."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

import asyncpg
import httpx2
import pytest
from fastapi import APIRouter, Depends
from pydantic import SecretStr
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.db import outbox
from app.core.db.database import around_commit, begin_request, close_database, open_database, transaction
from app.core.db.engine import DatabaseUnavailable
from app.core.db.outbox import Targets
from app.core.exceptions.cache_exceptions import MissingClientError
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils.cache import cache, invalidate, invalidate_on_commit, invalidation, open_cache, opened
from app.core.utils.cache.invalidation import Invalidator, write_down
from app.core.utils.cache.store import Store
from app.core.utils.redis_link import Link, LinkDown
from app.core.utils.redis_link import link as redis_link
from app.models.tier import Tier
from scripts.embedded import Postgres, Valkey, free_port
from tests.conftest import connect
from tests.core.utils.cache.conftest import started
from tests.core.utils.test_redis_link import PATIENT, Client, nothing_unseen, takes, until
from tests.core.utils.test_redis_link import opened as opened_link

pytestmark = pytest.mark.anyio

KEY, OTHER = "thing:1", "thing:2"
SECRET = "hunter2-long-and-secret"
FAR = 100.0  # seconds


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all that is done from time to time done often; a server only hangs when a test has it hang."""
    monkeypatch.setattr(invalidation, "TICK", 0.03)
    monkeypatch.setattr(invalidation, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(invalidation, "SETTLE", 0.03)
    monkeypatch.setattr(invalidation, "LINGER", 0.5)
    monkeypatch.setattr(redis_link, "PAUSE", 0.03)
    monkeypatch.setattr(redis_link, "LONGEST_PAUSE", 0.06)
    monkeypatch.setitem(Link.__init__.__kwdefaults__ or {}, "answer_timeout", PATIENT)


class Proxy:
    """Stands before a server, and can be away, or hang."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self._to = to
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Proxy":
        await self.back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.away()
        self._flowing.set()
        await asyncio.gather(*self._tasks)

    async def back(self) -> None:
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def hang(self) -> None:
        self._flowing.clear()

    async def away(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, to_server}
        await asyncio.gather(self._pump(reader, to_server), self._pump(from_server, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
        writer.close()


@pytest.fixture
def client(valkey: Valkey, settings: Settings) -> Iterator[Client]:
    """Another connection to Valkey, past everything of ours."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        yield client


@pytest.fixture
async def valkey_proxy(valkey: Valkey) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
async def postgres_proxy(postgres: Postgres) -> AsyncIterator[Proxy]:
    async with Proxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def reachable(settings: Settings, valkey_proxy: Proxy, postgres_proxy: Proxy) -> Settings:
    """Settings of an app that both can be taken away from."""
    ports = {"REDIS_CACHE_PORT": valkey_proxy.port, "POSTGRES_PORT": postgres_proxy.port}
    return settings.model_copy(update=ports)


@pytest.fixture
async def database_open(reachable: Settings) -> AsyncIterator[None]:
    engine = open_database(reachable)
    begin_request()
    yield
    await close_database(engine)


@asynccontextmanager
async def looking_after(settings: Settings, *, durable: bool = True) -> AsyncIterator[Invalidator]:
    """What a process has that looks after what is to be dropped."""
    async with opened_link(settings.redis_cache_url) as link:
        invalidator = Invalidator(Store(link), durable=durable)
        await invalidator.open()
        try:
            yield invalidator
        finally:
            await invalidator.close()


@pytest.fixture
async def invalidator(reachable: Settings, database_open: None) -> AsyncIterator[Invalidator]:
    async with looking_after(reachable) as invalidator:
        assert invalidator.trusted
        yield invalidator


def remember(client: Client, *keys: str) -> None:
    """Stores something under these keys."""
    for key in keys or (KEY,):
        client.hset(key, "vwhatever", "old")


def remembered(client: Client) -> set[str]:
    """The resources of which something is stored."""
    return {key.decode() for key in client.keys("thing:*")}


async def rows(settings: Settings, statement: str = "SELECT * FROM cache_invalidation ORDER BY id") -> list[Any]:
    """What is written down, as seen from outside."""
    connection: asyncpg.Connection = await connect(settings.POSTGRES_DB)
    found = await connection.fetch(statement)
    await connection.close()
    return list(found)


DUE = "SELECT * FROM cache_invalidation WHERE due_at <= clock_timestamp()"


async def until_there_are_no_rows(settings: Settings) -> None:
    async with asyncio.timeout(5):
        while await rows(settings):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)


async def change(invalidator: Invalidator, *keys: str, patterns: tuple[str, ...] = ()) -> None:
    """Commits something that makes these wrong."""
    async with transaction() as db:
        around_commit(db, partial(invalidator.around, targets=Targets(keys or (KEY,), patterns)))


async def write(*keys: str, delay: float = 0) -> None:
    """Writes down what others are to drop after so many seconds."""
    async with transaction() as db:
        await outbox.record(db, Targets(keys or (KEY,)), delay)


def store_of(invalidator: Invalidator) -> Store:
    return invalidator._store


class Voiding:
    """Holds up what a process drops, and counts it."""

    def __init__(self, invalidator: Invalidator, *, held: bool = False) -> None:
        store = store_of(invalidator)
        self._void = store.void
        store.void = self._counted  # type: ignore[method-assign]
        self.count: Counter[str] = Counter()
        self.begun = asyncio.Event()
        self.free = asyncio.Event()
        if not held:
            self.free.set()

    async def _counted(self, keys: Sequence[str], patterns: Sequence[str] = ()) -> None:
        self.begun.set()
        await self.free.wait()
        await self._void(keys, patterns)
        self.count.update([*keys, *patterns])


# ---- A commit ----


async def test_what_is_to_be_dropped_is_written_in_the_transaction_and_dropped_after_it(
    invalidator: Invalidator, settings: Settings, client: Client
) -> None:
    seen: list[tuple[int, int]] = []

    @asynccontextmanager
    async def look(db: AsyncSession) -> AsyncIterator[None]:
        async def note() -> None:
            seen.append((len(await rows(settings)), len(remembered(client))))

        await note()
        yield
        await note()

    remember(client, KEY, OTHER, "thing:x:1", "thing:3")
    async with transaction() as db:
        targets = Targets((KEY, OTHER), ("thing:x:*",))
        around_commit(db, partial(invalidator.around, targets=targets))
        around_commit(db, look)
    assert seen == [(0, 4), (3, 4)]
    assert remembered(client) == {"thing:3"}
    written = await rows(settings)
    assert [(row["target"], row["is_pattern"]) for row in written] == [
        (KEY, False),
        (OTHER, False),
        ("thing:x:*", True),
    ]
    assert await rows(settings, DUE) == []  # For now it is for whoever wrote it.


async def test_without_a_commit_nothing_is_written_or_dropped(
    invalidator: Invalidator, settings: Settings, client: Client
) -> None:
    remember(client)
    with pytest.raises(Conflict):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, partial(invalidator.around, targets=Targets((KEY,))))
            raise Conflict
    assert remembered(client) == {KEY}
    assert await rows(settings) == []


async def test_a_commit_that_fails_drops_nothing(
    invalidator: Invalidator, settings: Settings, client: Client, postgres_proxy: Proxy
) -> None:
    @asynccontextmanager
    async def take_the_database_away(db: AsyncSession) -> AsyncIterator[None]:
        await postgres_proxy.away()
        yield

    remember(client)
    with pytest.raises(DatabaseUnavailable):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, partial(invalidator.around, targets=Targets((KEY,))))
            around_commit(db, take_the_database_away)
    assert remembered(client) == {KEY}
    assert await rows(settings) == []


async def test_rows_are_forgotten_a_while_after_they_are_done(
    invalidator: Invalidator, settings: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "LINGER", 0.4)
    for _ in range(3):
        await change(invalidator)
    await asyncio.sleep(0.2)
    assert len(await rows(settings)) == 3  # A server that crashes can come back without the last second.
    await until_there_are_no_rows(settings)


async def test_what_a_server_that_crashed_has_back_is_dropped_again(
    invalidator: Invalidator, client: Client, valkey_proxy: Proxy
) -> None:
    await change(invalidator)
    await valkey_proxy.away()
    await until(lambda: not invalidator.trusted)
    remember(client)  # It had written this to its disk, and not that it was dropped.
    await valkey_proxy.back()
    await until(lambda: invalidator.trusted)
    assert remembered(client) == set()


async def test_a_caller_who_leaves_after_the_commit_cannot_stop_the_drop(
    invalidator: Invalidator, client: Client
) -> None:
    remember(client)
    voiding = Voiding(invalidator, held=True)
    changing = asyncio.create_task(change(invalidator))
    await until(voiding.begun.is_set)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert remembered(client) == {KEY}
    voiding.free.set()
    await until(lambda: not remembered(client))


# ---- Requests ----


class KeptConflict(Conflict):
    keeps_changes = True


class WithRoutes:
    """An app whose routes change things in every way there is, and one that is cached."""

    def __init__(self, client: Client) -> None:
        self.router = APIRouter()
        self.computed = 0
        self.seen: list[set[str]] = []
        router = self.router

        @router.get("/thing/{thing_id}")
        @cache("thing")
        async def read(thing_id: int) -> int:
            self.computed += 1
            return self.computed

        @router.post("/fine/{thing_id}")
        @cache("thing")
        async def fine(thing_id: int, db: SessionDep) -> None:
            db.add(Tier(name="fine"))

        @router.post("/kept/{thing_id}")
        @cache("thing")
        async def kept(thing_id: int, db: SessionDep) -> None:
            db.add(Tier(name="kept"))
            raise KeptConflict

        @router.post("/refused/{thing_id}")
        @cache("thing")
        async def refused(thing_id: int, db: SessionDep) -> None:
            db.add(Tier(name="refused"))
            await db.flush()
            raise Conflict

        @router.post("/crashed/{thing_id}")
        @cache("thing")
        async def crashed(thing_id: int, db: SessionDep) -> None:
            db.add(Tier(name="crashed"))
            await db.flush()
            raise ZeroDivisionError

        @router.post("/twice/{thing_id}")
        @cache("thing")
        async def twice(thing_id: int, db: SessionDep) -> None:
            db.add(Tier(name="first"))
            await db.commit()
            self.seen.append(remembered(client))
            remember(client)
            db.add(Tier(name="second"))

        @router.post("/inside/{thing_id}")
        @cache("thing")
        async def inside(thing_id: int) -> None:
            async with transaction() as db:
                db.add(Tier(name="inside"))
                await db.flush()
                self.seen.append(remembered(client))
            self.seen.append(remembered(client))

        async def tier_of_a_dependency(db: SessionDep) -> Tier:
            tier = Tier(name="of a dependency")
            db.add(tier)
            return tier

        @router.post("/dependency/{thing_id}")
        @cache("thing")
        async def dependency(thing_id: int, tier: Annotated[Tier, Depends(tier_of_a_dependency)]) -> None:
            self.seen.append(remembered(client))

        @router.post("/elsewhere/{thing_id}")
        @cache("thing")
        async def elsewhere(thing_id: int) -> None:
            """Changes something that is not in the database."""

        @router.post("/by-hand/{thing_id}")
        async def by_hand(thing_id: int) -> None:
            await invalidate("thing", thing_id)


@pytest.fixture
def routes(client: Client) -> WithRoutes:
    return WithRoutes(client)


@pytest.fixture
async def app(routes: WithRoutes, reachable: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with started(create_application(routes.router, reachable)) as app:
        yield app


@pytest.mark.parametrize(
    ("path", "status", "written"),
    [("fine", 200, 1), ("kept", 409, 1), ("twice", 200, 2), ("inside", 200, 1), ("dependency", 200, 1)],
)
async def test_a_request_that_commits_drops_and_writes_down(
    app: httpx2.AsyncClient, settings: Settings, client: Client, path: str, status: int, written: int
) -> None:
    remember(client, KEY, OTHER)
    assert (await app.post(f"{path}/1")).status_code == status
    assert remembered(client) == {OTHER}
    assert [row["target"] for row in await rows(settings)] == [KEY] * written


@pytest.mark.parametrize(("path", "status"), [("refused", 409), ("crashed", 500)])
async def test_a_request_that_is_rolled_back_does_not(
    app: httpx2.AsyncClient, settings: Settings, client: Client, path: str, status: int
) -> None:
    remember(client)
    assert (await app.post(f"{path}/1")).status_code == status
    assert remembered(client) == {KEY}
    assert await rows(settings) == []


async def test_a_commit_amid_a_request_drops_then_and_the_end_again(
    app: httpx2.AsyncClient, client: Client, routes: WithRoutes
) -> None:
    remember(client)
    await app.post("twice/1")
    assert routes.seen == [set()]
    assert remembered(client) == set()


async def test_a_transaction_inside_of_a_handler_drops_when_it_is_committed(
    app: httpx2.AsyncClient, client: Client, routes: WithRoutes
) -> None:
    remember(client)
    await app.post("inside/1")
    assert routes.seen == [{KEY}, set()]


async def test_a_change_elsewhere_is_dropped_and_needs_no_row(
    app: httpx2.AsyncClient, settings: Settings, client: Client
) -> None:
    remember(client)
    assert (await app.post("elsewhere/1")).status_code == 200
    assert remembered(client) == set()
    assert await rows(settings) == []


# ---- While Valkey is away ----


async def test_while_it_is_away_changes_succeed_and_nothing_stored_is_used_until_they_are_dropped(
    app: httpx2.AsyncClient, settings: Settings, client: Client, valkey_proxy: Proxy
) -> None:
    assert [(await app.get("thing/1")).headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]
    await valkey_proxy.away()
    await until(lambda: (cache := opened.current()) is not None and not cache.usable)
    for path in ("fine/1", "elsewhere/2", "by-hand/3"):
        assert (await app.post(path)).status_code == 200
    assert {row["target"] for row in await rows(settings, DUE)} == {KEY, OTHER, "thing:3"}
    for answer in [await app.get("thing/1") for _ in range(2)]:
        assert answer.headers["x-cache"] == "BYPASS"
    assert [answer.json() for answer in [await app.get("thing/1")]] == [4]
    remember(client, OTHER, "thing:3")
    await valkey_proxy.back()
    await until(lambda: (cache := opened.current()) is not None and cache.usable)
    assert remembered(client) == set()
    assert (await app.get("thing/1")).json() == 5
    await until_there_are_no_rows(settings)


async def test_at_the_very_commit_it_is_away_too(
    invalidator: Invalidator, settings: Settings, client: Client, valkey_proxy: Proxy
) -> None:
    """The row is not due then: whoever wrote it makes it so."""

    @asynccontextmanager
    async def take_it_away(db: AsyncSession) -> AsyncIterator[None]:
        yield
        assert await rows(settings, DUE) == []
        await valkey_proxy.away()
        await until(lambda: not store_of(invalidator).link.up)

    remember(client)
    with capture_logs() as lines:
        async with transaction() as db:
            around_commit(db, partial(invalidator.around, targets=Targets((KEY,))))
            around_commit(db, take_it_away)
    warnings = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert warnings[0] == "redis is away"
    assert not invalidator.trusted
    async with asyncio.timeout(3):
        while not await rows(settings, DUE):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)
    await valkey_proxy.back()
    await until(lambda: invalidator.trusted)
    assert remembered(client) == set()
    await until_there_are_no_rows(settings)


async def test_all_that_is_written_down_is_dropped_before_anything_is_trusted(
    invalidator: Invalidator, client: Client, valkey_proxy: Proxy
) -> None:
    await valkey_proxy.away()
    await until(lambda: not invalidator.trusted)
    await change(invalidator, KEY)
    await write(OTHER, delay=FAR)  # By another process, that may not come to it.
    remember(client, KEY, OTHER)
    voiding = Voiding(invalidator, held=True)
    await valkey_proxy.back()
    await until(voiding.begun.is_set)
    await asyncio.sleep(0.1)
    assert remembered(client) == {KEY, OTHER}
    assert not invalidator.trusted
    voiding.free.set()
    await until(lambda: invalidator.trusted)
    assert remembered(client) == set()


async def test_others_have_time_to_come_back_and_write_down_what_they_could_not_drop(
    invalidator: Invalidator, client: Client, valkey_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "SETTLE", 0.5)
    await valkey_proxy.away()
    await until(lambda: not invalidator.trusted)
    await valkey_proxy.back()
    await until(lambda: store_of(invalidator).link.up)
    await asyncio.sleep(0.2)
    assert not invalidator.trusted
    remember(client)
    await write(KEY, delay=FAR)
    await until(lambda: invalidator.trusted)
    assert remembered(client) == set()


async def test_an_outage_amid_the_dropping_is_another_one(
    invalidator: Invalidator, client: Client, valkey_proxy: Proxy
) -> None:
    await write(KEY, delay=FAR)
    await valkey_proxy.away()
    await until(lambda: not invalidator.trusted)
    store = store_of(invalidator)
    void = store.void
    voided = asyncio.Event()

    async def void_and_go(keys: Sequence[str], patterns: Sequence[str] = ()) -> None:
        await void(keys, patterns)
        if not voided.is_set():
            voided.set()
            await valkey_proxy.away()
            await until(lambda: not store.link.up)

    store.void = void_and_go  # type: ignore[method-assign]
    await valkey_proxy.back()
    await until(voided.is_set)
    await asyncio.sleep(0.1)
    assert not store.link.up
    assert not invalidator.trusted
    remember(client)
    await valkey_proxy.back()
    await until(lambda: invalidator.trusted)
    assert remembered(client) == set()


async def test_what_it_refuses_to_drop_is_not_trusted(
    invalidator: Invalidator, settings: Settings, client: Client
) -> None:
    """As a server that has become a replica: it answers, and has the old."""
    remember(client)
    client.replicaof("127.0.0.1", 1)
    try:
        with capture_logs() as lines:
            for _ in range(3):
                await change(invalidator)
                assert not invalidator.trusted
        assert 1 <= len(lines) <= 2, lines  # Not one with each change.
        assert remembered(client) == {KEY}
        await asyncio.sleep(0.1)
        assert not invalidator.trusted
    finally:
        client.replicaof("NO", "ONE")
    await until(lambda: invalidator.trusted and not remembered(client))
    await until_there_are_no_rows(settings)


async def test_what_it_refuses_to_drop_by_hand_is_not_trusted_either(invalidator: Invalidator, client: Client) -> None:
    remember(client)
    client.replicaof("127.0.0.1", 1)
    try:
        await invalidator.now(Targets((KEY,)))
        assert not invalidator.trusted
    finally:
        client.replicaof("NO", "ONE")
    await until(lambda: invalidator.trusted and not remembered(client))


async def test_a_start_without_it_is_not_trusted_until_it_is_there(
    reachable: Settings, database_open: None, client: Client, valkey_proxy: Proxy
) -> None:
    await valkey_proxy.away()
    await write(KEY, delay=FAR)
    async with looking_after(reachable) as invalidator:
        assert not invalidator.trusted
        remember(client)
        await valkey_proxy.back()
        await until(lambda: invalidator.trusted)
        assert remembered(client) == set()


async def test_a_start_drops_what_others_have_left(
    reachable: Settings, database_open: None, client: Client, settings: Settings
) -> None:
    await write(KEY)
    remember(client)
    async with looking_after(reachable) as invalidator:
        assert invalidator.trusted
        assert remembered(client) == set()
        assert len(await rows(settings)) == 1  # The server can crash, and come back without its last second.
        assert await rows(settings, DUE) == []
        await until_there_are_no_rows(settings)


# ---- While the database is away ----


async def test_with_both_away_a_change_of_something_else_is_remembered(
    invalidator: Invalidator, client: Client, valkey_proxy: Proxy, postgres_proxy: Proxy
) -> None:
    remember(client)
    await valkey_proxy.away()
    await postgres_proxy.away()
    await until(lambda: not invalidator.trusted)
    await invalidator.now(Targets((KEY,)))
    await postgres_proxy.back()
    await valkey_proxy.back()
    await until(lambda: invalidator.trusted)
    assert remembered(client) == set()


@pytest.mark.parametrize("how", ["away", "hanging"])
async def test_while_the_database_is_away_after_an_outage_nothing_is_trusted(
    invalidator: Invalidator,
    client: Client,
    valkey_proxy: Proxy,
    postgres_proxy: Proxy,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.core.db.engine.CONNECT_TIMEOUT", 0.2)
    await write(KEY, delay=FAR)
    remember(client)
    with capture_logs() as lines:
        await valkey_proxy.away()
        await until(lambda: not invalidator.trusted)
        if how == "away":
            await postgres_proxy.away()
        else:
            postgres_proxy.hang()
        await valkey_proxy.back()
        await until(lambda: store_of(invalidator).link.up)
        await asyncio.sleep(0.5)
        assert not invalidator.trusted
        assert remembered(client) == {KEY}
        await postgres_proxy.back()
        await until(lambda: invalidator.trusted, seconds=10)
    assert remembered(client) == set()
    complaints = [line["event"] for line in lines].count("cache invalidations wait")
    assert (complaints > 0) or how == "hanging"
    assert complaints <= 3  # Not with each try.


async def test_while_the_database_alone_is_away_what_is_stored_stays_trusted(
    invalidator: Invalidator, settings: Settings, postgres_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "LINGER", 0.1)
    await change(invalidator)
    await postgres_proxy.away()
    await asyncio.sleep(0.3)
    assert invalidator.trusted  # Nothing can change meanwhile.
    assert len(await rows(settings)) == 1
    await postgres_proxy.back()
    await until_there_are_no_rows(settings)


@pytest.mark.parametrize("error", [DatabaseUnavailable(), OSError("cut"), TimeoutError(), RuntimeError("a bug")])
async def test_whatever_goes_wrong_once_is_tried_again(
    invalidator: Invalidator, client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    is_any_due = outbox.is_any_due
    failures = 0

    async def fail_twice(db: AsyncSession) -> bool:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise error
        return await is_any_due(db)

    monkeypatch.setattr(outbox, "is_any_due", fail_twice)
    remember(client)
    await write(KEY)
    await until(lambda: not remembered(client), seconds=2)


# ---- What others have left ----


async def test_what_a_dead_process_left_is_dropped_when_it_is_due_and_by_one_of_the_others(
    reachable: Settings, database_open: None, settings: Settings, client: Client
) -> None:
    async with looking_after(reachable) as first, looking_after(reachable) as second:
        voidings = [Voiding(first), Voiding(second)]
        remember(client)
        await write(KEY, delay=0.5)
        written = time.perf_counter()
        await asyncio.sleep(0.25)
        assert remembered(client) == {KEY}
        await until(lambda: not remembered(client))
        assert time.perf_counter() - written > 0.4
        await until_there_are_no_rows(settings)
        await asyncio.sleep(0.1)
        assert sum((voiding.count for voiding in voidings), Counter()) == {KEY: 1}


async def test_of_many_that_tick_at_once_each_takes_a_part(
    reachable: Settings, database_open: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "TICK", FAR)
    keys = [f"thing:{number}" for number in range(1300)]
    async with (
        looking_after(reachable) as first,
        looking_after(reachable) as second,
        looking_after(reachable) as third,
    ):
        processes = [first, second, third]
        voidings = [Voiding(process) for process in processes]
        await write(*keys)
        await asyncio.gather(*(process._try() for process in processes))
        assert sum((voiding.count for voiding in voidings), Counter()) == Counter(keys)
        assert await rows(settings, DUE) == []


async def test_nobody_waits_for_what_another_is_dropping(
    reachable: Settings, database_open: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "TICK", FAR)
    async with looking_after(reachable) as first, looking_after(reachable) as second:
        held, other = Voiding(first, held=True), Voiding(second)
        await write(KEY)
        dropping = asyncio.create_task(first._try())
        await until(held.begun.is_set)
        await write(OTHER)
        with takes(at_most=0.5):
            await second._try()
        assert other.count == {OTHER: 1}
        held.free.set()
        await dropping
        assert held.count == {KEY: 1}
        assert await rows(settings, DUE) == []


async def test_what_could_not_be_dropped_is_still_there_for_others(
    invalidator: Invalidator, settings: Settings, valkey_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(keys: Sequence[str], patterns: Sequence[str] = ()) -> None:
        raise LinkDown

    monkeypatch.setattr(store_of(invalidator), "void", fail)
    await write(KEY)
    await asyncio.sleep(0.2)
    assert [row["target"] for row in await rows(settings)] == [KEY]


async def test_a_process_that_lives_keeps_its_rows_to_itself(
    reachable: Settings, database_open: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "LINGER", 0.1)
    monkeypatch.setattr(invalidation, "OWN", 1.0)
    async with looking_after(reachable) as first, looking_after(reachable) as second:
        voiding = Voiding(second)
        await change(first)
        await until_there_are_no_rows(settings)
        assert voiding.count == {}


# ---- By hand ----


async def test_by_hand_it_is_dropped_at_once(
    reachable: Settings, database_open: None, settings: Settings, client: Client
) -> None:
    async with open_cache(reachable, durable=True):
        remember(client, KEY, "thing:a%3Ab")
        await invalidate("thing", 1)
        assert remembered(client) == {"thing:a%3Ab"}
        await invalidate("thing", "a:b")
        assert remembered(client) == set()
        assert await rows(settings) == []


async def test_by_hand_without_a_cache_is_a_mistake() -> None:
    assert opened.current() is None
    with pytest.raises(MissingClientError):
        await invalidate("thing", 1)


async def test_with_a_transaction_it_is_dropped_when_that_is_committed(
    reachable: Settings, database_open: None, settings: Settings, client: Client
) -> None:
    async with open_cache(reachable, durable=True):
        remember(client)
        async with transaction() as db:
            invalidate_on_commit(db, "thing", 1)
            db.add(Tier(name="fine"))
            await db.flush()
            assert remembered(client) == {KEY}
        assert remembered(client) == set()
        assert len(await rows(settings)) == 1

        remember(client)
        with pytest.raises(Conflict):  # noqa: PT012 (the session ends there)
            async with transaction() as db:
                invalidate_on_commit(db, "thing", 1)
                raise Conflict
        assert remembered(client) == {KEY}


async def test_a_script_leaves_it_to_those_who_have_a_cache(
    reachable: Settings, database_open: None, settings: Settings, client: Client
) -> None:
    remember(client)
    async with transaction() as db:
        invalidate_on_commit(db, "thing", 1)
    assert [row["target"] for row in await rows(settings, DUE)] == [KEY]
    assert remembered(client) == {KEY}
    with pytest.raises(Conflict):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, partial(write_down, targets=Targets((OTHER,))))
            raise Conflict
    assert len(await rows(settings)) == 1
    async with looking_after(reachable) as invalidator:
        assert remembered(client) == set()
        remember(client)
        async with transaction() as db:
            invalidate_on_commit(db, "thing", 1)
        await until(lambda: not remembered(client))
        assert invalidator.trusted


# ---- Without a database ----


async def test_without_a_database_a_process_remembers_what_it_could_not_drop(
    reachable: Settings, client: Client, valkey_proxy: Proxy
) -> None:
    async with looking_after(reachable, durable=False) as invalidator:
        remember(client, KEY, OTHER)
        await invalidator.now(Targets((OTHER,)))
        assert remembered(client) == {KEY}
        await valkey_proxy.away()
        await until(lambda: not invalidator.trusted)
        await invalidator.now(Targets((KEY,)))
        voiding = Voiding(invalidator, held=True)
        await valkey_proxy.back()
        await until(voiding.begun.is_set)
        assert not invalidator.trusted
        voiding.free.set()
        await until(lambda: invalidator.trusted)
        assert remembered(client) == set()


async def test_without_a_database_what_was_refused_is_done_later(reachable: Settings, client: Client) -> None:
    async with looking_after(reachable, durable=False) as invalidator:
        remember(client)
        client.replicaof("127.0.0.1", 1)
        try:
            await invalidator.now(Targets((KEY,)))
            await asyncio.sleep(0.1)
            assert not invalidator.trusted
        finally:
            client.replicaof("NO", "ONE")
        await until(lambda: invalidator.trusted)
        assert remembered(client) == set()


# ---- The end, and what is told ----


async def test_a_close_is_prompt_and_what_is_stored_is_not_trusted_after_it(
    reachable: Settings, database_open: None
) -> None:
    async with looking_after(reachable) as invalidator:
        with takes():
            await invalidator.close()
        assert not invalidator.trusted
        await asyncio.sleep(0.1)
        assert not invalidator.trusted


@pytest.mark.parametrize("what", ["database", "valkey"])
async def test_a_close_does_not_wait_for_what_hangs(
    reachable: Settings, database_open: None, valkey_proxy: Proxy, postgres_proxy: Proxy, what: str
) -> None:
    async with looking_after(reachable) as invalidator:
        (postgres_proxy if what == "database" else valkey_proxy).hang()
        await asyncio.sleep(0.1)  # It is asked by now.
        with takes(at_most=invalidation.CLOSE_SECONDS + 0.3):
            await invalidator.close()
        await postgres_proxy.back()
        await valkey_proxy.back()
        await asyncio.sleep(0.05)
        assert not invalidator.trusted


async def test_nobody_is_told_a_password(
    reachable: Settings, valkey_proxy: Proxy, postgres_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:{valkey_proxy.port}/0"
    secret = SecretStr(SECRET)
    settings = reachable.model_copy(update={"REDIS_CACHE_URL": SecretStr(url)})
    wrong = settings.model_copy(update={"POSTGRES_PASSWORD": secret})
    with capture_logs() as lines:
        for one in (settings, wrong, reachable.model_copy(update={"POSTGRES_PASSWORD": secret})):
            engine = open_database(one)
            async with open_cache(one, durable=True) as cache_of_one:
                await asyncio.sleep(0.1)
                for proxy in (valkey_proxy, postgres_proxy):
                    await proxy.away()
                await asyncio.sleep(0.1)
                with suppress(DatabaseUnavailable):
                    await change(cache_of_one.invalidator)
                for proxy in (valkey_proxy, postgres_proxy):
                    await proxy.back()
                await asyncio.sleep(0.1)
            await close_database(engine)
    assert len(lines) > 5
    for password in (SECRET, reachable.POSTGRES_PASSWORD.get_secret_value()):
        assert password not in repr(lines)
