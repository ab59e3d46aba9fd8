"""Domain events: when they are published, and what their handlers can do."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from arq.worker import get_kwargs
from fastapi import APIRouter
from sqlalchemy import bindparam, delete, insert, text, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import SessionDep
from app.core.config import Settings, get_settings
from app.core.db.database import close_database, open_database, transaction
from app.core.events import Subscription, subscribe, subscribe_after_commit
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils import queue
from app.core.worker.options import job
from app.core.worker.settings import LongWorkerSettings, WorkerSettings
from app.core.worker.testing import drain_jobs
from app.core.worker.worker import DurableWorker
from app.crud.crud_users import crud_users
from app.models.tier import Tier
from app.models.user import User
from app.models.user_events import UserChanged, UserCreated, UserDeleted, UserErased, UserEvent
from app.subscriptions import SUBSCRIPTIONS
from scripts import create_first_superuser, database_script, set_superuser
from tests.conftest import client_of, second_session
from tests.helper import HASHED_PASSWORD, create_user
from tests.user_events import Heard

pytestmark = pytest.mark.anyio


class Opened:
    """The database, with subscriptions that a test adds."""

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []


@pytest.fixture
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    opened = Opened()

    async def unused(db: AsyncSession, event: Tier) -> None:
        raise AssertionError("A tier is no event.")

    opened.subscriptions.append(subscribe(Tier, unused))
    engine = open_database(settings, subscriptions=opened.subscriptions)
    yield opened
    await close_database(engine)


@pytest.fixture
def heard(opened: Opened) -> Heard:
    heard = Heard()
    opened.subscriptions += heard.subscriptions
    return heard


@pytest.fixture
async def ada(opened: Opened, heard: Heard) -> User:
    async with transaction() as db:
        user = await create_user(db, username="ada", name="Ada")
    heard.take()
    return user


async def names() -> dict[str, str]:
    async with transaction() as db:
        return {user.username: user.name for user in await db.exec(select(User))}


# ---- Every way to change a row ----


async def by_attribute(db: AsyncSession, user: User) -> None:
    found = await crud_users.get(db, user.id)
    assert found is not None
    found.name = "Grace"


async def by_flush(db: AsyncSession, user: User) -> None:
    await by_attribute(db, user)
    await db.flush()


async def in_two_steps(db: AsyncSession, user: User) -> None:
    found = await crud_users.get(db, user.id)
    assert found is not None
    found.name = "Something else"
    await db.flush()
    found.name = "Grace"


async def by_an_unloaded_row(db: AsyncSession, user: User) -> None:
    await db.merge(User(**user.model_dump() | {"name": "Grace"}))


async def by_statement(db: AsyncSession, user: User) -> None:
    await db.exec(update(User).where(col(User.id) == user.id).values(name="Grace"))


async def by_statement_with_parameters(db: AsyncSession, user: User) -> None:
    statement = update(User).where(col(User.username) == bindparam("known_as")).values(name="Grace")
    await db.exec(statement, params={"known_as": user.username})


async def by_primary_keys(db: AsyncSession, user: User) -> None:
    await db.exec(update(User), params=[{"id": user.id, "name": "Grace"}])


async def in_a_savepoint(db: AsyncSession, user: User) -> None:
    async with db.begin_nested():
        await by_attribute(db, user)


@pytest.mark.parametrize(
    "change",
    [
        by_attribute,
        by_flush,
        in_two_steps,
        by_an_unloaded_row,
        by_statement,
        by_statement_with_parameters,
        by_primary_keys,
        in_a_savepoint,
    ],
)
async def test_one_event_whichever_way_a_row_is_changed(heard: Heard, ada: User, change: Any) -> None:
    async with transaction() as db:
        await create_user_without_event(db)
        await change(db, ada)
    assert await names() == {"ada": "Grace", "other": "A Person"}
    changed = [event for event in heard.within if event.username == "ada"]
    assert [(type(event), event.before, event.after) for event in changed if isinstance(event, UserChanged)] == [
        (UserChanged, {"name": "Ada"}, {"name": "Grace"})
    ]
    assert len(changed) == 1
    assert heard.after == heard.within


async def create_user_without_event(db: AsyncSession) -> None:
    """Another user, by an INSERT on the connection, which no session sees."""
    values = {"name": "A Person", "username": "other", "email": "o@example.com", "hashed_password": HASHED_PASSWORD}
    await (await db.connection()).execute(insert(cast("Any", User).__table__), values)


async def test_several_rows_of_one_statement(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        await create_user(db, username="alan", name="Alan")
    heard.take()
    async with transaction() as db:
        await db.exec(update(User).values(is_superuser=True))
    assert sorted(heard.take()) == [("UserChanged", "ada", {"is_superuser"}), ("UserChanged", "alan", {"is_superuser"})]
    async with transaction() as db:
        await db.exec(delete(User).where(col(User.username) == "alan"))
        await db.delete(await db.get_one(User, ada.id))
    assert sorted(heard.take()) == [("UserErased", "ada", set()), ("UserErased", "alan", set())]


async def test_what_comes_to_nothing_is_no_event(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        user = await db.get_one(User, ada.id)
        user.name = "Grace"
        await db.flush()
        user.name = "Ada"
        short_lived = await crud_users.create(
            db, User(name="x", username="x", email="x@example.com", hashed_password=HASHED_PASSWORD)
        )
        await crud_users.delete(db, short_lived)
        user.hashed_password = "renewed"
    assert heard.take() == []


async def test_a_savepoint_that_is_rolled_back_is_no_event(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        savepoint = await db.begin_nested()
        await by_flush(db, ada)
        await db.exec(delete(User).where(col(User.id) == ada.id))
        await savepoint.rollback()
    assert heard.take() == []
    assert await names() == {"ada": "Ada"}


async def test_a_transaction_that_is_rolled_back_is_no_event_of_the_next(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        await by_flush(db, ada)
        await db.rollback()
        async with second_session() as other:
            await by_attribute(other, ada)
        assert heard.take() == [("UserChanged", "ada", {"name"})]
        assert await db.get_one(User, ada.id)
    assert heard.take() == []


async def test_each_commit_of_a_session_publishes_what_is_new(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        user = await db.get_one(User, ada.id)
        for name in ("Grace", "Alan"):
            user.name = name
            await db.commit()
    events = [(event.before, event.after) for event in heard.within if isinstance(event, UserChanged)]
    assert events == [({"name": "Ada"}, {"name": "Grace"}), ({"name": "Grace"}, {"name": "Alan"})]


async def test_a_deletion_stands_for_what_it_sets(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        user = await crud_users.lock(db, ada.id)
        await crud_users.soft_delete(db, user)
        user.name = "Nobody"
    assert heard.take() == [("UserChanged", "ada", {"name"}), ("UserDeleted", "ada", set())]
    async with transaction() as db:
        await crud_users.restore(db, await crud_users.lock(db, ada.id, deleted=True))
    assert heard.take() == [("UserRestored", "ada", set())]


# ---- What handlers can do ----


async def test_a_handler_within_reads_writes_and_can_refuse(opened: Opened, ada: User) -> None:
    async def rename(db: AsyncSession, event: UserChanged) -> None:
        user = await db.get_one(User, event.id)
        async with db.begin_nested():
            user.profile_image_url = f"https://example.com/{event.after['name']}.png"

    async def refuse(db: AsyncSession, event: UserDeleted) -> None:
        raise Conflict("The user has open invoices.")

    opened.subscriptions += [subscribe(UserChanged, rename_once(rename)), subscribe(UserDeleted, refuse)]
    async with transaction() as db:
        await by_attribute(db, ada)
    async with transaction() as db:
        assert (await db.get_one(User, ada.id)).profile_image_url == "https://example.com/Grace.png"
    with pytest.raises(Conflict, match="open invoices"):
        async with transaction() as db:
            await crud_users.soft_delete(db, await crud_users.lock(db, ada.id))
    async with transaction() as db:
        assert not (await db.get_one(User, ada.id)).is_deleted


def rename_once(handler: Any) -> Any:
    async def handle(db: AsyncSession, event: UserChanged) -> None:
        if "name" in event.changed:
            await handler(db, event)

    return handle


async def test_what_a_handler_changes_is_an_event_as_well(opened: Opened, heard: Heard, ada: User) -> None:
    async def promote(db: AsyncSession, event: UserChanged) -> None:
        if "name" in event.changed:
            (await db.get_one(User, event.id)).is_superuser = True

    opened.subscriptions.append(subscribe(UserChanged, promote))
    async with transaction() as db:
        await by_attribute(db, ada)
    assert heard.take() == [("UserChanged", "ada", {"name"}), ("UserChanged", "ada", {"is_superuser"})]


async def test_handlers_that_never_come_to_an_end_are_an_error(opened: Opened, ada: User) -> None:
    async def toggle(db: AsyncSession, event: UserChanged) -> None:
        user = await db.get_one(User, event.id)
        user.name += "!"

    opened.subscriptions.append(subscribe(UserChanged, toggle))
    with pytest.raises(RuntimeError, match="again and again"):
        async with transaction() as db:
            await by_attribute(db, ada)
    assert await names() == {"ada": "Ada"}


async def test_a_handler_enqueues_a_job_that_is_not_lost(opened: Opened, ada: User, settings: Settings) -> None:
    """In the API and in workers, where the queue is open, and in scripts, where it is not."""
    done: list[int] = []

    async def tell(ctx: dict[str, Any], user_id: int) -> None:
        done.append(user_id)

    async def enqueue(db: AsyncSession, event: UserChanged) -> None:
        await queue.enqueue(db, "tell", event.id)

    opened.subscriptions.append(subscribe(UserChanged, enqueue))
    async with transaction() as db:
        await by_attribute(db, ada)
    async with queue.open_queue(settings):
        async with transaction() as db:
            (await db.get_one(User, ada.id)).name = "Alan"
        await drain_jobs([job(tell, name="tell")])
    assert done == [ada.id, ada.id]


async def test_a_handler_after_the_commit_finds_it_made_and_cannot_undo_it(
    opened: Opened, ada: User, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []

    async def look(event: UserEvent) -> None:
        found.append(await names())
        raise ZeroDivisionError

    opened.subscriptions.append(subscribe_after_commit(UserEvent, look))
    async with transaction() as db:
        await by_attribute(db, ada)
    assert found == [{"ada": "Grace"}]
    assert "action after commit failed" in capsys.readouterr().out
    async with transaction() as db:
        await by_flush(db, ada)
        await db.rollback()
    assert len(found) == 1


async def test_a_subscription_gets_its_kind_only_and_events_say_no_values(opened: Opened, ada: User) -> None:
    told: list[UserEvent] = []

    async def note(db: AsyncSession, event: UserCreated | UserErased) -> None:
        told.append(event)

    opened.subscriptions += [subscribe(UserCreated, note), subscribe(UserErased, note)]
    async with transaction() as db:
        await by_attribute(db, ada)
    async with transaction() as db:
        await create_user(db, username="alan", name="Alan")
    assert [type(event) for event in told] == [UserCreated]
    assert "alan@" not in repr(told)
    assert isinstance(told[0], UserCreated)
    with pytest.raises(TypeError):
        cast("Any", told[0].values)["name"] = "changed"


async def test_without_subscriptions_nothing_is_read(settings: Settings) -> None:
    engine = open_database(settings)
    try:
        async with transaction() as db:
            user = await create_user(db, username="ada")
            await db.refresh(user)
            assert "slipway_changed_rows" not in db.info
    finally:
        await close_database(engine)


# ---- Jobs and scripts ----


async def test_a_job_publishes_too(opened: Opened, heard: Heard, ada: User, settings: Settings) -> None:
    async def rename_user(ctx: dict[str, Any], user_id: int) -> None:
        user = await ctx["db"].get_one(User, user_id)
        user.name = "Grace"

    async with queue.open_queue(settings):
        async with transaction() as db:
            await queue.enqueue(db, "rename_user", ada.id)
        await drain_jobs([job(rename_user, name="rename_user")])
    assert heard.take() == [("UserChanged", "ada", {"name"})]


@pytest.mark.parametrize("settings_class", [WorkerSettings, LongWorkerSettings])
async def test_the_command_arq_passes_the_subscriptions_on(settings_class: Any) -> None:
    options: dict[str, Any] = dict(get_kwargs(settings_class))
    worker: Any = DurableWorker(**options)
    assert options["subscriptions"] is SUBSCRIPTIONS
    assert worker._subscriptions is SUBSCRIPTIONS


def test_scripts_publish_too(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr(database_script, "SUBSCRIPTIONS", heard.subscriptions)
    create_first_superuser.run()
    username = get_settings().ADMIN_USERNAME
    assert heard.take() == [("UserCreated", username, set())]
    monkeypatch.setattr("sys.argv", ["set_superuser", username, "off"])
    set_superuser.main()
    assert heard.take() == [("UserChanged", username, {"is_superuser"})]


async def test_statements_on_a_connection_are_not_seen(heard: Heard, ada: User) -> None:
    async with transaction() as db:
        await (await db.connection()).execute(text("UPDATE \"user\" SET name = 'Grace'"))
    assert heard.take() == []


async def test_an_error_that_was_caught_rolls_back_and_publishes_nothing(settings: Settings, heard: Heard) -> None:
    router = APIRouter()

    @router.post("/rename/{user_id}")
    async def rename(user_id: int, db: SessionDep) -> str:
        await by_flush(db, await db.get_one(User, user_id))
        try:
            await (await db.connection()).execute(text("SELECT 1 / 0"))
        except DBAPIError:
            return "not renamed"
        return "renamed"

    app = create_application(router, settings, subscriptions=heard.subscriptions)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with transaction() as db:
            user = await create_user(db, username="ada", name="Ada")
        heard.take()
        answer = await client.post(f"http://test/rename/{user.id}")
        assert (answer.status_code, answer.json()) == (200, "not renamed")
        assert await names() == {"ada": "Ada"}
    assert heard.take() == []


async def test_more_rows_than_a_statement_has_parameters(opened: Opened, ada: User) -> None:
    """The driver takes 32767 of them."""
    heard: list[UserEvent] = []

    async def hear(event: UserEvent) -> None:
        heard.append(event)

    opened.subscriptions[:] = [subscribe_after_commit(UserEvent, hear)]
    copies = """INSERT INTO "user" SELECT copy.* FROM "user" AS one, generate_series(1, 33000) AS n,
        jsonb_populate_record(one, jsonb_build_object('id', 100000 + n, 'uuid', gen_random_uuid(),
        'username', 'copy' || n, 'email', 'copy' || n || '@example.com')) AS copy"""
    async with transaction() as db:
        await (await db.connection()).execute(text(copies))
        await db.exec(update(User).values(name="Grace"))
    assert len(heard) == 33001
