"""What is done with a commit: before it in its transaction, after it once it is made, and never without one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.db.database import (
    after_commit,
    around_commit,
    around_commits,
    async_get_db,
    begin_request,
    close_database,
    open_database,
    transaction,
)
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.models.tier import Tier
from tests.conftest import client_of, connect
from tests.helper import counted_statements

pytestmark = pytest.mark.anyio


class KeptConflict(Conflict):
    keeps_changes = True


class Notes:
    """Contexts that note how they were gone through, and what is committed then."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.taken: list[str] = []
        self.committed: list[list[str]] = []

    @asynccontextmanager
    async def around(self, db: AsyncSession, name: str = "") -> AsyncIterator[None]:
        await self._note(f"before{name}")
        try:
            yield
        except BaseException as error:
            await self._note(f"{type(error).__name__}{name}")
            raise
        await self._note(f"after{name}")

    def named(self, name: str) -> Any:
        return lambda db: self.around(db, f" {name}")

    async def after(self) -> None:
        await self._note("then")

    async def _note(self, what: str) -> None:
        self.taken.append(what)
        self.committed.append(await tier_names(self._settings))


async def tier_names(settings: Settings) -> list[str]:
    """What is committed, as seen from outside."""
    connection = await connect(settings.POSTGRES_DB)
    names = [row["name"] for row in await connection.fetch("SELECT name FROM tier ORDER BY id")]
    await connection.close()
    return names


@pytest.fixture
async def opened(settings: Settings) -> AsyncIterator[None]:
    engine = open_database(settings)
    begin_request()
    yield
    await close_database(engine)


@pytest.fixture
def notes(settings: Settings, opened: None) -> Notes:
    return Notes(settings)


async def insert_late(db: AsyncSession) -> None:
    """Something that is not wrong until COMMIT checks it."""
    await (await db.connection()).execute(text("CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"))
    await (await db.connection()).execute(text("INSERT INTO late VALUES (1), (1)"))


# ---- One session ----


async def test_a_commit_is_made_inside_of_what_is_around_it_and_before_what_comes_after(notes: Notes) -> None:
    async with transaction() as db:
        after_commit(db, notes.after)
        around_commit(db, notes.named("a"))
        around_commit(db, notes.named("b"))
        db.add(Tier(name="fine"))
        await db.flush()
        assert notes.taken == []
    assert notes.taken == ["before a", "before b", "after b", "after a", "then"]
    assert notes.committed == [[], [], ["fine"], ["fine"], ["fine"]]


async def test_what_is_written_before_the_commit_is_in_its_transaction(notes: Notes, settings: Settings) -> None:
    @asynccontextmanager
    async def write(db: AsyncSession) -> AsyncIterator[None]:
        db.add(Tier(name="with it"))
        yield

    async with transaction() as db:
        around_commit(db, write)
        db.add(Tier(name="fine"))
    assert sorted(await tier_names(settings)) == ["fine", "with it"]

    with pytest.raises(Conflict):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, write)
            raise Conflict
    assert len(await tier_names(settings)) == 2


async def test_without_a_commit_nothing_is_done(notes: Notes) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, notes.around)
            after_commit(db, notes.after)
            db.add(Tier(name="rolled back"))
            await db.flush()
            raise ZeroDivisionError
    assert notes.taken == []


async def test_an_error_that_keeps_changes_commits_them_like_any_other(notes: Notes) -> None:
    with pytest.raises(KeptConflict):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, notes.around)
            after_commit(db, notes.after)
            db.add(Tier(name="kept"))
            raise KeptConflict
    assert notes.taken == ["before", "after", "then"]
    assert notes.committed[-1] == ["kept"]


async def test_an_error_before_the_commit_rolls_back(notes: Notes, settings: Settings) -> None:
    @asynccontextmanager
    async def fail(db: AsyncSession) -> AsyncIterator[None]:
        await (await db.connection()).execute(text("SELECT 1 / 0"))
        yield

    with pytest.raises(DBAPIError, match="division by zero"):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, notes.around)
            around_commit(db, fail)
            after_commit(db, notes.after)
            db.add(Tier(name="rolled back"))
    assert notes.taken == ["before", "DBAPIError"]
    assert await tier_names(settings) == []


async def test_after_a_commit_that_failed_nothing_is_as_if_it_had_been_made(notes: Notes) -> None:
    with pytest.raises(Exception, match="late_pkey"):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, notes.around)
            after_commit(db, notes.after)
            db.add(Tier(name="not committed"))
            await insert_late(db)
    assert notes.taken == ["before", "IntegrityError"]
    assert notes.committed[-1] == []


async def test_every_commit_is_inside_and_what_comes_after_comes_once(notes: Notes) -> None:
    async with transaction() as db:
        around_commit(db, notes.around)
        after_commit(db, notes.after)
        db.add(Tier(name="first"))
        await db.commit()
        assert notes.taken == ["before", "after", "then"]
        db.add(Tier(name="second"))
    assert notes.taken == ["before", "after", "then", "before", "after"]
    assert notes.committed == [[], ["first"], ["first"], ["first"], ["first", "second"]]


async def test_what_comes_after_can_be_registered_around(notes: Notes) -> None:
    @asynccontextmanager
    async def register(db: AsyncSession) -> AsyncIterator[None]:
        after_commit(db, notes.after)
        yield

    async with transaction() as db:
        around_commit(db, register)
    assert notes.taken == ["then"]


async def test_an_unused_session_costs_no_statement(opened: None) -> None:
    with counted_statements() as statements:
        async with transaction():
            pass
        with pytest.raises(KeptConflict):
            async with transaction():
                raise KeptConflict
    assert statements == []


async def test_an_unused_session_takes_no_connection(settings: Settings) -> None:
    engine = open_database(settings)
    async with transaction(), transaction():
        pass
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    await close_database(engine)


# ---- All sessions of a request or task ----


async def test_sessions_that_are_open_and_those_opened_inside_are_watched(notes: Notes, settings: Settings) -> None:
    async with transaction() as first:
        first.add(Tier(name="open before"))
        with around_commits(notes.around) as watched:
            assert watched.transactions == 1
            async with transaction() as second:
                assert watched.transactions == 2
                second.add(Tier(name="opened inside"))
            assert notes.taken == ["before", "after"]
            assert notes.committed == [[], ["opened inside"]]
        async with transaction() as third:  # Outside of it.
            third.add(Tier(name="opened later"))
        assert notes.taken == ["before", "after"]
    assert notes.taken == ["before", "after"] * 2
    assert watched.transactions == 2
    assert len(await tier_names(settings)) == 3


async def test_a_session_that_was_closed_before_is_not_watched(notes: Notes) -> None:
    async with transaction() as db:
        db.add(Tier(name="before"))
    with around_commits(notes.around) as watched:
        pass
    assert (watched.transactions, notes.taken) == (0, [])


async def test_watches_can_be_inside_of_each_other(notes: Notes) -> None:
    with around_commits(notes.named("outer")), around_commits(notes.named("inner")):
        async with transaction() as db:
            db.add(Tier(name="fine"))
    assert notes.taken == ["before outer", "before inner", "after inner", "after outer"]
    notes.taken.clear()
    with around_commits(notes.named("outer")):
        with around_commits(notes.named("inner")):
            pass
        async with transaction() as db:
            db.add(Tier(name="another"))
    assert notes.taken == ["before outer", "after outer"]


async def test_a_watch_that_ends_with_an_error_is_over(notes: Notes) -> None:
    with pytest.raises(ZeroDivisionError), around_commits(notes.around):
        raise ZeroDivisionError
    async with transaction() as db:
        db.add(Tier(name="fine"))
    assert notes.taken == []


async def test_what_tasks_do_at_the_same_time_is_not_watched(notes: Notes) -> None:
    """Each has its own sessions, though they share the loop."""
    opened, watched = asyncio.Event(), asyncio.Event()

    async def another() -> None:
        async with transaction() as db:
            opened.set()
            await watched.wait()
            db.add(Tier(name="another's"))

    async def watching() -> int:
        await opened.wait()
        with around_commits(notes.around) as about:
            watched.set()
            await task
            async with transaction() as db:
                db.add(Tier(name="own"))
        return about.transactions

    task = asyncio.create_task(another())
    assert await asyncio.create_task(watching()) == 1
    assert notes.committed == [["another's"], ["another's", "own"]]


# ---- Requests ----


@pytest.fixture
async def client(settings: Settings, notes: Notes) -> AsyncIterator[httpx2.AsyncClient]:
    """An app whose routes watch their own transactions."""
    router = APIRouter()

    async def another_session() -> AsyncIterator[AsyncSession]:
        async with transaction() as db:
            yield db

    async def tier_of_a_dependency(db: Annotated[AsyncSession, Depends(async_get_db, scope="function")]) -> Tier:
        tier = Tier(name="of a dependency")
        db.add(tier)
        return tier

    @router.post("/dependency")
    async def dependency(tier: Annotated[Tier, Depends(tier_of_a_dependency)]) -> int:
        with around_commits(notes.around) as watched:
            return watched.transactions

    @router.post("/two")
    async def two(db: SessionDep, other: Annotated[AsyncSession, Depends(another_session)]) -> int:
        with around_commits(notes.around) as watched:
            return watched.transactions

    @router.post("/none")
    async def none() -> int:
        with around_commits(notes.around) as watched:
            return watched.transactions

    app = create_application(router, settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


async def test_a_session_that_only_a_dependency_has_is_watched(client: httpx2.AsyncClient, notes: Notes) -> None:
    assert (await client.post("dependency")).json() == 1
    assert notes.taken == ["before", "after"]
    assert notes.committed[-1] == ["of a dependency"]


async def test_every_session_of_a_request_is_watched(client: httpx2.AsyncClient, notes: Notes) -> None:
    assert (await client.post("two")).json() == 2
    assert notes.taken == ["before", "after"] * 2


async def test_a_request_does_not_see_the_transactions_of_who_asks(client: httpx2.AsyncClient, notes: Notes) -> None:
    """In one task, as in a test, or in an app that asks itself."""
    async with transaction() as db:
        assert (await client.post("none")).json() == 0
        assert (await client.post("dependency")).json() == 1
        assert (await client.post("none")).json() == 0
        assert notes.taken == ["before", "after"]
        db.add(Tier(name="of who asks"))
    assert notes.taken == ["before", "after"]


async def test_requests_at_the_same_time_see_their_own(client: httpx2.AsyncClient, notes: Notes) -> None:
    answers = await asyncio.gather(*(client.post("two") for _ in range(4)))
    assert [answer.json() for answer in answers] == [2] * 4
    assert len(notes.taken) == 16


async def test_a_session_is_still_open_when_one_inside_of_it_has_ended(notes: Notes) -> None:
    async with transaction() as outer:
        async with transaction():
            pass
        with around_commits(notes.around) as watched:
            assert watched.transactions == 1
        outer.add(Tier(name="outer"))
    assert notes.committed == [[], ["outer"]]


# ---- Commits past ours, and callers who leave ----


async def insert(db: AsyncSession, name: str) -> None:
    """A change that is committed at once, and not by `Transaction.commit`."""
    async with db.begin():
        db.add(Tier(name=name))


async def test_what_follows_from_a_commit_past_ours_is_done_although_an_error_comes_after_it(
    notes: Notes, settings: Settings
) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, notes.around)
            after_commit(db, notes.after)
            await insert(db, "kept")
            db.add(Tier(name="rolled back"))
            await db.flush()
            raise ZeroDivisionError
    assert notes.taken == ["before", "after", "then"]
    assert await tier_names(settings) == ["kept"]


async def test_what_follows_from_a_commit_past_ours_is_done_once(notes: Notes) -> None:
    async with transaction() as db:
        around_commit(db, notes.around)
        after_commit(db, notes.after)
        await insert(db, "fine")
    assert notes.taken == ["before", "after", "then"]

    notes.taken.clear()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, notes.around)
            after_commit(db, notes.after)
            db.add(Tier(name="by our commit"))
            await db.commit()
            raise ZeroDivisionError
    assert notes.taken == ["before", "after", "then"]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_caller_who_leaves_after_the_commit_stops_nothing_that_follows_from_it(
    notes: Notes, times: int
) -> None:
    committed, go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(db: AsyncSession) -> AsyncIterator[None]:
        yield
        committed.set()
        await go_on.wait()

    async def change() -> None:
        async with transaction() as db:
            around_commit(db, notes.named("a"))
            around_commit(db, notes.named("b"))
            around_commit(db, slow)
            after_commit(db, notes.after)
            after_commit(db, notes.after)
            db.add(Tier(name="fine"))

    task = asyncio.create_task(change())
    await committed.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    async with asyncio.timeout(5):
        while len(notes.committed) < 6:  # noqa: ASYNC110 -- of another task
            await asyncio.sleep(0.005)
    assert notes.taken == ["before a", "before b", "after b", "after a", "then", "then"]
    assert notes.committed[-1] == ["fine"]


# ---- What is no commit, and what is left of one that failed ----


async def test_the_end_of_a_savepoint_is_no_commit(notes: Notes, settings: Settings) -> None:
    with pytest.raises(LookupError):
        await _fail_after_a_savepoint(notes)
    assert notes.taken == []
    assert await tier_names(settings) == []


async def _fail_after_a_savepoint(notes: Notes) -> None:
    async with transaction() as db:
        around_commit(db, notes.around)
        after_commit(db, notes.after)
        async with db.begin_nested():
            db.add(Tier(name="in a savepoint"))
        raise LookupError


async def test_with_a_savepoint_in_it_a_commit_is_one_commit(notes: Notes, settings: Settings) -> None:
    async with transaction() as db:
        around_commit(db, notes.around)
        after_commit(db, notes.after)
        async with db.begin_nested():
            db.add(Tier(name="kept"))
    assert notes.taken == ["before", "after", "then"]
    assert await tier_names(settings) == ["kept"]


async def test_what_should_have_come_after_a_commit_that_failed_does_not_come_after_the_next(
    notes: Notes, settings: Settings
) -> None:
    async with transaction() as db:
        after_commit(db, notes.after)
        await insert_late(db)
        with pytest.raises(IntegrityError):
            await db.commit()
        await db.rollback()
        db.add(Tier(name="of the second try"))
    assert notes.taken == []
    assert await tier_names(settings) == ["of the second try"]
