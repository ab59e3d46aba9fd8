"""Who is answered by a replica: a real one, which can be paused and stopped. Two servers: tests/e2e."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings, get_settings
from app.core.db import replica as replica_module
from app.core.db.database import close_database, open_database, transaction
from app.core.db.engine import DatabaseUnavailable, create_engine
from app.core.db.replica import ANSWER, Replica
from app.core.utils.redis_link import link_to
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier
from scripts.embedded import Postgres
from tests.postgres_topologies import Standby, standby_of

pytestmark = pytest.mark.anyio

ADA, BOB = ["user:1", "address:192.0.2.1"], ["address:192.0.2.2"]
POOL = 3


@pytest.fixture(scope="module")
def standby(postgres: Postgres) -> Iterator[Standby]:
    with standby_of(postgres) as standby:
        yield standby


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about a replica that hangs: on a busy machine any can be late."""
    monkeypatch.setattr(replica_module, "ANSWER", 10.0)


@asynccontextmanager
async def opened(settings: Settings, standby: Standby) -> AsyncIterator[Replica]:
    """The primary and the replica, which has what is there by now."""
    user, password = os.environ["POSTGRES_USER"], quote(os.environ["POSTGRES_PASSWORD"])
    address = f"postgresql://{user}:{password}@127.0.0.1:{standby.port}/{settings.POSTGRES_DB}"
    of_standby = Settings(POSTGRES_READ_URL=address).postgres_read_address
    async with AsyncExitStack() as stack:
        stack.push_async_callback(close_database, open_database(settings))
        engine = create_engine(settings, POOL, address=of_standby)
        stack.push_async_callback(engine.dispose)
        link = link_to(settings.redis_rate_limit_url, "test")
        await link.open()
        stack.push_async_callback(link.close)
        replica = Replica(engine, link)
        await until_caught_up(replica)
        await replica.open()
        stack.push_async_callback(replica.close)
        yield replica


@pytest.fixture
async def replica(settings: Settings, standby: Standby) -> AsyncIterator[Replica]:
    async with opened(settings, standby) as replica:
        yield replica
        standby.resume()


async def until_caught_up(replica: Replica) -> None:
    """Returns when the replica has all that is committed now, the test's database included."""
    await replica.note(["the test"])
    async with asyncio.timeout(20):
        while True:
            async with replica.reading(["the test"]) as db:
                if await is_the_replica_s(db):
                    return
            await asyncio.sleep(0.02)


async def is_the_replica_s(db: AsyncSession) -> bool:
    return bool(await (await db.connection()).scalar(text("SELECT pg_is_in_recovery()")))


async def is_answered_by_it(replica: Replica, subjects: list[str]) -> bool:
    async with replica.reading(subjects) as db:
        return await is_the_replica_s(db)


async def until_answered_by_it(replica: Replica, subjects: list[str], *, no_more: bool = False) -> None:
    async with asyncio.timeout(30):
        while await is_answered_by_it(replica, subjects) is no_more:  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)


async def write() -> None:
    async with transaction() as db:
        await crud_tiers.create(db, Tier(name=f"tier {time.time_ns()}"))


async def test_whoever_has_written_is_not_answered_by_it_until_it_has_that(replica: Replica, standby: Standby) -> None:
    assert await is_answered_by_it(replica, ADA)
    standby.pause()
    await write()
    await replica.note(ADA)
    assert not await is_answered_by_it(replica, ADA)
    assert not await is_answered_by_it(replica, [*BOB, ADA[1]])
    assert await is_answered_by_it(replica, BOB)
    standby.resume()
    await until_answered_by_it(replica, ADA)


async def test_nothing_can_be_written_with_its_session(replica: Replica) -> None:
    with pytest.raises(Exception, match="read-only transaction"):
        async with replica.reading(ADA) as db:
            await (await db.connection()).execute(text("DELETE FROM tier"))


async def test_an_earlier_note_does_not_take_the_place_of_a_later_one(
    replica: Replica, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    standby.pause()
    await write()
    await replica.note(ADA)

    async def earlier() -> int:
        return 1

    monkeypatch.setattr(replica_module, "_written", earlier)
    await replica.note(ADA)
    assert not await is_answered_by_it(replica, ADA)


async def test_when_the_primary_does_not_say_how_far_it_is_it_answers(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown() -> int:
        raise DatabaseUnavailable

    monkeypatch.setattr(replica_module, "_written", unknown)
    await replica.note(ADA)
    assert not await is_answered_by_it(replica, ADA)
    assert await is_answered_by_it(replica, BOB)


async def test_one_that_lags_for_long_answers_nobody(
    settings: Settings, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "SAMPLE", 0.05)
    monkeypatch.setattr(replica_module, "LAG", 0.5)
    async with opened(settings, standby) as replica:
        standby.pause()
        await write()
        await until_answered_by_it(replica, BOB, no_more=True)
        standby.resume()
        await until_answered_by_it(replica, BOB)


async def test_nobody_waits_for_one_that_hangs(
    replica: Replica, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "ANSWER", ANSWER)
    assert standby.process is not None
    # Its children as well: they are who answers.
    children = [int(pid) for pid in (await output_of("pgrep", "-P", str(standby.process.pid))).split()]
    everybody = [standby.process.pid, *children]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        answered = await asyncio.gather(*(is_answered_by_it(replica, BOB) for _ in range(3 * POOL)))
        assert not any(answered)
        assert time.monotonic() - began < 10 * ANSWER
        began = time.monotonic()
        assert not await is_answered_by_it(replica, BOB)
        assert time.monotonic() - began < ANSWER, "it is known by now"
    finally:
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
    await until_answered_by_it(replica, BOB)


async def output_of(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode()


async def test_when_its_connections_are_in_use_the_primary_answers(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(POOL):
            assert await is_the_replica_s(await stack.enter_async_context(replica.reading(BOB)))
        monkeypatch.setattr(replica_module, "ANSWER", ANSWER)
        assert not await is_answered_by_it(replica, BOB)


async def test_notes_are_forgotten(replica: Replica, settings: Settings) -> None:
    await replica.note(ADA)
    link = link_to(get_settings().redis_rate_limit_url, "test")
    await link.open()
    for subject in ADA:
        assert 0 < await link.ask("TTL", f"slipway:written:{{{subject}}}") <= replica_module.REMEMBERED
    await link.close()
