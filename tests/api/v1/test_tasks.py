"""Background tasks over HTTP: rows of a table, done by a real worker in this process."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from redis import Redis
from sqlalchemy import text
from sqlmodel import col, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.queue import Job, JobState
from app.core.worker import worker
from app.core.worker.options import job
from app.core.worker.testing import drain_jobs
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier
from app.models.user import User
from scripts.embedded import free_port
from tests.conftest import client_of, second_session
from tests.helper import create_superuser, create_user, signed_in

pytestmark = pytest.mark.anyio

NAME = "sample_background_task"
NEW_JOB = {
    "function": NAME,
    "status": "queued",
    "attempt": 0,
    "started_at": None,
    "finished_at": None,
    "success": None,
    "result": None,
    "error": None,
    "progress": None,
}
DETAILS = {"queue", "args", "kwargs", "owner_id", "idempotency_key", "cancel_requested", "worker"}
UNKNOWN_ID = "0" * 32

Context = dict[Any, Any]
Task = Callable[[Context, Any], Awaitable[Any]]


async def greet(_: Context, message: str) -> str:
    return message


async def fail(_: Context, message: str) -> str:
    raise ValueError(f"cannot say {message}")


async def post(client: httpx2.AsyncClient, headers: dict[str, str] | None = None, **more: str) -> httpx2.Response:
    return await client.post("tasks/task", params={"message": "hello"}, headers=(headers or {}) | more)


async def enqueue(client: httpx2.AsyncClient, headers: dict[str, str] | None = None, **more: str) -> str:
    answer = await post(client, headers, **more)
    assert answer.status_code == 201
    assert answer.json().keys() == {"id"}
    return str(answer.json()["id"])


async def enqueue_directly(*args: Any, **options: Any) -> str:
    """A job with what cannot be said over HTTP."""
    async with second_session() as db:
        return (await queue.enqueue(db, NAME, *args, **options)).job_id


async def seen(client: httpx2.AsyncClient, task_id: str, headers: dict[str, str] | None = None) -> Any:
    answer = await client.get(f"tasks/task/{task_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def do_all_jobs(task: Any, **options: Any) -> list[Job]:
    """Does all that waits, with this in place of the sample task, which takes five seconds; by default in one try."""
    return await drain_jobs([job(task, name=NAME, max_tries=options.pop("max_tries", 1))], allow_dead=True, **options)


async def count(db: AsyncSession) -> int:
    return (await db.exec(select(func.count()).select_from(Job))).one()


class Held:
    """A task that has begun, and changed something, and does not end by itself."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, ctx: Context, message: str) -> str:
        await crud_tiers.create(ctx["db"], Tier(name=message))
        self.begun.set()
        await self.may_end.wait()
        return message

    @property
    def task(self) -> Any:
        async def hold(ctx: Context, message: str) -> str:
            return await self(ctx, message)

        return hold


@asynccontextmanager
async def held(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Held]:
    """While a worker runs what waits; it ends when the worker has nothing to do any more."""
    monkeypatch.setattr(worker, "ROUND", 0.05)
    task = Held()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        draining = group.create_task(do_all_jobs(task.task))
        await task.begun.wait()
        try:
            yield task
        except BaseException:
            draining.cancel()
            raise


async def tier_names(client: httpx2.AsyncClient) -> list[str]:
    return [tier["name"] for tier in (await client.get("tiers")).json()["data"]]


@pytest.fixture
async def owner(db: AsyncSession) -> User:
    return await create_user(db)


@pytest.fixture
async def other(db: AsyncSession) -> User:
    return await create_user(db)


@pytest.fixture
async def admin(db: AsyncSession) -> User:
    return await create_superuser(db)


# ---- From the request to the result ----


async def test_a_task_is_queued_then_done(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue(client)

    queued = await seen(client, task_id)
    assert queued.pop("enqueued_at") == queued.pop("run_after")
    assert queued == {"id": task_id} | NEW_JOB

    async def look(_: Context, message: str) -> str:
        running = await seen(client, task_id)
        return f"{message} while {running['status']}, attempt {running['attempt']}"

    await do_all_jobs(look)

    done = await seen(client, task_id)
    assert done.keys() == queued.keys() | {"enqueued_at", "run_after"}
    assert (done["status"], done["success"], done["attempt"], done["error"]) == ("complete", True, 1, None)
    assert done["result"] == "hello while in_progress, attempt 1"
    assert done["enqueued_at"] <= done["started_at"] <= done["finished_at"]


async def test_the_sample_task_says_how_far_it_is_and_that_it_is_done(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.worker.functions.SAMPLE_SECONDS", 1)
    task_id = await enqueue(client)
    await drain_jobs()
    done = await seen(client, task_id)
    assert done["result"] == "Task hello is complete!"
    assert done["progress"]["total"] == 1


async def test_a_tasks_state_is_never_kept(client: httpx2.AsyncClient, owner: User, settings: Settings) -> None:
    headers = signed_in(owner, settings)
    for path in (f"tasks/task/{await enqueue(client)}", "tasks"):
        assert (await client.get(path, headers=headers)).headers["Cache-Control"] == "no-store"


async def test_a_deferred_task_says_until_when(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue_directly("later", _defer_by=3600)
    await do_all_jobs(greet, skip_delays=False)
    deferred = await seen(client, task_id)
    assert (deferred["status"], deferred["attempt"]) == ("deferred", 0)
    assert deferred["run_after"] > deferred["enqueued_at"]


async def test_a_failed_attempt_says_why_and_waits_for_the_next_one(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue(client)
    await do_all_jobs(fail, max_tries=3, skip_delays=False)
    waits = await seen(client, task_id)
    assert (waits["status"], waits["attempt"], waits["success"]) == ("deferred", 1, None)
    assert (waits["result"], waits["error"]) == (None, "ValueError: cannot say hello")

    await do_all_jobs(greet, max_tries=3)
    done = await seen(client, task_id)
    assert (done["status"], done["attempt"], done["result"], done["error"]) == ("complete", 2, "hello", None)


async def test_a_task_that_failed_for_good_says_why(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue(client)
    await do_all_jobs(fail, max_tries=3)

    dead = await seen(client, task_id)
    assert (dead["status"], dead["success"], dead["attempt"]) == ("dead", False, 3)
    assert dead["result"] == dead["error"] == "ValueError: cannot say hello"
    assert dead["started_at"] <= dead["finished_at"]


async def test_a_tasks_progress_can_be_read_while_it_runs_and_later(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue(client)
    shown = []

    async def count_to_two(ctx: Context, message: str) -> None:
        for done in (1, 2):
            await queue.progress(ctx, done, 2, f"{message} {done}")
            shown.append((await seen(client, task_id))["progress"])

    await do_all_jobs(count_to_two)
    assert shown[0] == {"done": 1, "total": 2, "message": "hello 1"}
    assert (await seen(client, task_id))["progress"] == {"done": 2, "total": 2, "message": "hello 2"}


# ---- Odd results ----


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("a \0 b", "a \0 b"),
        ({"\0": ["\0"]}, {"\0": ["\0"]}),
        (None, None),
        (10**400, 10**400),
    ],
)
async def test_an_odd_result_can_be_read(client: httpx2.AsyncClient, result: Any, shown: Any) -> None:
    async def give(_: Context, message: str) -> Any:
        return result

    task_id = await enqueue(client)
    await do_all_jobs(give)
    done = await seen(client, task_id)
    assert (done["status"], done["success"], done["result"]) == ("complete", True, shown)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("half \ud800", "result has half of a surrogate pair"),
        ({"a": ["\udfff"]}, "result['a'][0] has half of a surrogate pair"),
        ({1: None}, "result has a key of type int"),
    ],
)
async def test_a_result_that_json_would_change_is_a_failure_that_names_the_place(
    client: httpx2.AsyncClient, owner: User, settings: Settings, result: Any, reason: str
) -> None:
    async def give(_: Context, message: str) -> Any:
        return result

    task_id = await enqueue(client, signed_in(owner, settings))
    await do_all_jobs(give)
    dead = await seen(client, task_id, signed_in(owner, settings))
    assert dead["status"] == "dead"
    assert reason in dead["error"]


@pytest.mark.parametrize("depth", [300, 900, 50_000])
async def test_a_deep_result_can_be_read_or_is_a_failure(
    client: httpx2.AsyncClient, owner: User, settings: Settings, depth: int
) -> None:
    async def give(_: Context, message: str) -> Any:
        result: list[Any] = []
        for _level in range(depth):
            result = [result]
        return result

    task_id = await enqueue(client, signed_in(owner, settings))
    await do_all_jobs(give, max_tries=3)
    done = await seen(client, task_id, signed_in(owner, settings))
    assert (done["status"], done["attempt"]) in {("complete", 1), ("dead", 1)}
    assert (await client.get("tasks", headers=signed_in(owner, settings))).status_code == 200


async def test_odd_text_in_errors_progress_and_arguments_can_be_read(
    client: httpx2.AsyncClient, admin: User, settings: Settings
) -> None:
    async def fail_oddly(ctx: Context, message: str) -> None:
        await queue.progress(ctx, 1, None, f"{message} \ud800")
        raise ValueError(f"{message} \ud800")

    task_id = await enqueue_directly("\0 and", _owner_id=admin.id)
    await do_all_jobs(fail_oddly)
    dead = await seen(client, task_id, signed_in(admin, settings))
    assert dead["error"] == dead["result"] == "ValueError: \ufffd and ?"
    assert dead["progress"] == {"done": 1, "total": None, "message": "\0 and ?"}
    assert dead["args"] == ["\0 and"]


@pytest.mark.parametrize("result", [{1, 2}, b"bytes", object(), float("nan"), float("inf")])
async def test_a_result_that_json_cannot_hold_is_dead_at_once(client: httpx2.AsyncClient, result: Any) -> None:
    async def give(ctx: Context, message: str) -> Any:
        await crud_tiers.create(ctx["db"], Tier(name=message))
        return result

    task_id = await enqueue(client)
    await do_all_jobs(give, max_tries=3)

    dead = await seen(client, task_id)
    assert (dead["status"], dead["success"], dead["attempt"]) == ("dead", False, 1)
    assert dead["error"].startswith("GiveUp: Its result cannot be written as JSON")
    assert await tier_names(client) == []


@pytest.mark.parametrize("total", [float("inf"), float("nan")])
async def test_progress_of_which_json_knows_nothing_fails_no_job(client: httpx2.AsyncClient, total: float) -> None:
    async def report(ctx: Context, message: str) -> str:
        await queue.progress(ctx, 1, total)
        return message

    task_id = await enqueue(client)
    await do_all_jobs(report)
    assert (await seen(client, task_id))["result"] == "hello"


async def test_a_result_that_is_kept_for_ever_can_be_read(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue(client)
    await drain_jobs([job(greet, name=NAME, keep_result_forever=True)])
    assert (await seen(client, task_id))["result"] == "hello"


# ---- The transaction ----


class Refused(Conflict):
    text = "It was not to be."


async def test_a_task_is_there_if_and_only_if_its_transaction_is_committed(settings: Settings) -> None:
    router = APIRouter(prefix="/api/v1")

    @router.post("/orders", status_code=201)
    async def place(db: SessionDep, refuse: bool) -> None:
        await queue.enqueue(db, NAME, "order")
        assert await queue.pool.zcard(queue.DEFAULT_QUEUE) == 0, "before the commit"
        if refuse:
            raise Refused

    app = create_application(router, settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.post("orders", params={"refuse": True})).status_code == 409
        async with second_session() as db:
            assert await count(db) == 0
        assert await queue.pool.zcard(queue.DEFAULT_QUEUE) == 0
        assert (await client.post("orders", params={"refuse": False})).status_code == 201
        assert await queue.pool.zcard(queue.DEFAULT_QUEUE) == 1
        (done,) = await do_all_jobs(greet)
    assert done.result == "order"


async def test_a_bad_token_or_message_enqueues_nothing(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    refused = await post(client, {"Authorization": "Bearer garbage"})
    assert refused.status_code == 401
    for message in ("", " ", "\0", "x" * 501):
        assert (await client.post("tasks/task", params={"message": message})).status_code == 422
    assert await count(db) == 0
    assert await queue.pool.zcard(queue.DEFAULT_QUEUE) == 0


# ---- The same key, the same task ----


async def test_the_same_caller_with_the_same_key_has_one_task(
    client: httpx2.AsyncClient, db: AsyncSession, owner: User, other: User, admin: User, settings: Settings
) -> None:
    key = {"Idempotency-Key": "order-1"}
    ids = []
    for user in (None, owner, other, admin):
        headers = signed_in(user, settings) if user else {}
        first = await enqueue(client, headers, **key)
        assert await enqueue(client, headers, **key) == first
        ids.append(first)
    assert len(set(ids)) == 4, "one for each caller"
    assert await count(db) == 4

    await do_all_jobs(greet)
    assert await enqueue(client, signed_in(owner, settings), **key) == ids[1], "also after its end"
    assert await enqueue(client, signed_in(owner, settings), **{"Idempotency-Key": "order-2"}) not in ids
    assert len(await do_all_jobs(greet)) == 1


async def test_the_same_key_at_the_same_moment_is_one_task(
    client: httpx2.AsyncClient, db: AsyncSession, owner: User, settings: Settings
) -> None:
    headers = signed_in(owner, settings)
    ids = await asyncio.gather(*(enqueue(client, headers, **{"Idempotency-Key": "once"}) for _ in range(20)))
    assert len(set(ids)) == 1
    assert await count(db) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, "\u00e4".encode().decode("latin-1"), "\t"])
async def test_a_bad_key_is_a_broken_request(client: httpx2.AsyncClient, db: AsyncSession, key: str) -> None:
    refused = await client.post(
        "tasks/task", params={"message": "x"}, headers=[(b"Idempotency-Key", key.encode("latin-1"))]
    )
    assert refused.status_code == 422
    assert [fault["loc"] for fault in refused.json()["errors"]] == [["header", "Idempotency-Key"]]
    assert await count(db) == 0


# ---- Time ----


async def test_a_tasks_own_timeout_around_a_statement_is_a_timeout(client: httpx2.AsyncClient) -> None:
    async def ask_slowly(ctx: Context, message: str) -> None:
        async with asyncio.timeout(0.2):
            await (await ctx["db"].connection()).execute(text("SELECT pg_sleep(20)"))

    task_id = await enqueue(client)
    await do_all_jobs(ask_slowly)
    assert (await seen(client, task_id))["error"] == "TimeoutError"


# ---- Who sees what ----


async def test_a_users_task_is_seen_by_them_and_superusers(
    client: httpx2.AsyncClient, owner: User, other: User, admin: User, settings: Settings
) -> None:
    theirs, nobodys = await enqueue(client, signed_in(owner, settings)), await enqueue(client)

    async def seen_by(user: User | None) -> tuple[bool, bool]:
        headers = signed_in(user, settings) if user else {}
        answers = [await client.get(f"tasks/task/{task_id}", headers=headers) for task_id in (theirs, nobodys)]
        return answers[0].status_code == 200, answers[1].status_code == 200

    assert await seen_by(None) == (False, True)
    assert await seen_by(owner) == (True, True)
    assert await seen_by(other) == (False, True)
    assert await seen_by(admin) == (True, True)


async def test_superusers_see_all_of_a_task_and_nobody_else_does(
    client: httpx2.AsyncClient, owner: User, admin: User, settings: Settings
) -> None:
    headers = signed_in(owner, settings)
    theirs, nobodys = await enqueue(client, headers, **{"Idempotency-Key": "k"}), await enqueue(client)
    directly = await enqueue_directly("one", _owner_id=owner.id, named="two")

    async def greet_by_name(_: Context, message: str, named: str = "") -> str:
        return message

    await do_all_jobs(greet_by_name)
    for user, task_id in ((owner, theirs), (owner, directly), (owner, nobodys), (None, nobodys)):
        shown = await seen(client, task_id, signed_in(user, settings) if user else {})
        assert shown.keys() == NEW_JOB.keys() | {"id", "enqueued_at", "run_after"}

    details = await seen(client, theirs, signed_in(admin, settings))
    assert details.keys() == NEW_JOB.keys() | {"id", "enqueued_at", "run_after"} | DETAILS
    assert (details["args"], details["kwargs"], details["owner_id"]) == (["hello"], {}, owner.id)
    assert details["queue"] == queue.DEFAULT_QUEUE
    assert details["idempotency_key"].endswith(f"{owner.id}:k")
    assert details["worker"]
    details = await seen(client, directly, signed_in(admin, settings))
    assert (details["args"], details["kwargs"]) == (["one"], {"named": "two"})


async def test_what_one_may_not_see_looks_like_what_is_not_there(
    client: httpx2.AsyncClient, db: AsyncSession, owner: User, other: User, settings: Settings
) -> None:
    theirs, expired = await enqueue(client, signed_in(owner, settings)), await enqueue(client)
    guessable = await enqueue_directly("x", _job_id="nightly:2026-01-01")
    await do_all_jobs(greet)
    await db.exec(update(Job).where(col(Job.id) == expired).values(expires_at=utc_now() - timedelta(seconds=1)))
    await db.commit()
    job_in_redis = {"f": NAME, "a": ("x",), "k": {}, "t": 1, "et": 1}
    pickled = "a" * 32
    await queue.pool.set(f"arq:job:{pickled}", pickle.dumps(job_in_redis))
    await queue.pool.set(f"arq:result:{pickled}", pickle.dumps(job_in_redis | {"s": True, "r": 1, "st": 1, "ft": 1}))

    for headers in ({}, signed_in(other, settings)):
        answers = [
            await client.get(f"tasks/task/{task_id}{way}", headers=headers)
            for task_id in (UNKNOWN_ID, theirs, expired, guessable, pickled, theirs.upper(), "x")
            for way in ("", "/events")
        ]
        texts = {answer.text.replace(answer.json()["request_id"], "") for answer in answers}
        assert len(texts) == 1, texts
        kept_apart = {"x-request-id", "ratelimit"}
        heads = [{name: value for name, value in a.headers.items() if name not in kept_apart} for a in answers]
        assert all(head == heads[0] for head in heads), heads
        assert answers[0].status_code == 404
        assert answers[0].json()["type"] == "urn:problem-type:job-not-found"
    for way in ("cancel", "replay"):
        task_ids = (UNKNOWN_ID, theirs, expired, guessable) if way == "cancel" else (UNKNOWN_ID, theirs)
        answers = [
            await client.post(f"tasks/task/{task_id}/{way}", headers=signed_in(other, settings)) for task_id in task_ids
        ]
        assert len({answer.text.replace(answer.json()["request_id"], "") for answer in answers}) == 1, way


async def test_superusers_see_what_has_an_id_that_can_be_guessed(
    client: httpx2.AsyncClient, admin: User, settings: Settings
) -> None:
    guessable = await enqueue_directly("x", _job_id="nightly:2026-01-01")
    assert (await seen(client, guessable, signed_in(admin, settings)))["id"] == guessable


@pytest.mark.parametrize("task_id", ["x" * 129, "a%20b", "%00", "%C3%A4"])
async def test_what_cannot_be_an_id_is_a_broken_request(client: httpx2.AsyncClient, task_id: str) -> None:
    for answer in (await client.get(f"tasks/task/{task_id}"), await client.get(f"tasks/task/{task_id}/events")):
        assert answer.status_code == 422


# ---- The list ----


async def listed(client: httpx2.AsyncClient, headers: dict[str, str], **params: Any) -> list[str]:
    answer = await client.get("tasks", params=params, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["total_count"] == len(answer.json()["data"])
    return [task["id"] for task in answer.json()["data"]]


async def test_the_list_is_for_who_is_signed_in(client: httpx2.AsyncClient) -> None:
    assert (await client.get("tasks")).status_code == 401


async def test_the_list_has_ones_own_tasks_and_superusers_see_all(
    client: httpx2.AsyncClient, owner: User, other: User, admin: User, settings: Settings
) -> None:
    first, second = [await enqueue(client, signed_in(owner, settings)) for _ in range(2)]
    nobodys = await enqueue(client)
    guessable = await enqueue_directly("x", _job_id="nightly")

    assert await listed(client, signed_in(owner, settings)) == [second, first]
    assert await listed(client, signed_in(other, settings)) == []
    assert await listed(client, signed_in(admin, settings)) == [guessable, nobodys, second, first]
    for user, more in ((owner, set()), (admin, DETAILS)):
        task = (await client.get("tasks", headers=signed_in(user, settings))).json()["data"][-1]
        assert task.keys() == NEW_JOB.keys() | {"id", "enqueued_at", "run_after"} | more


async def test_the_list_has_pages(client: httpx2.AsyncClient, owner: User, settings: Settings) -> None:
    headers = signed_in(owner, settings)
    ids = [await enqueue(client, headers) for _ in range(5)]
    found: list[str] = []
    for page in (1, 2, 3):
        answer = (await client.get("tasks", params={"page": page, "items_per_page": 2}, headers=headers)).json()
        assert (answer["total_count"], answer["page"], answer["has_more"]) == (5, page, page < 3)
        found += [task["id"] for task in answer["data"]]
    assert found == ids[::-1]


async def test_the_list_can_be_of_one_status(
    client: httpx2.AsyncClient, owner: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = signed_in(owner, settings)
    ids = {"complete": await enqueue(client, headers)}
    await do_all_jobs(greet)
    ids["dead"] = await enqueue(client, headers)
    await do_all_jobs(fail)
    ids["cancelled"] = await enqueue(client, headers)
    await client.post(f"tasks/task/{ids['cancelled']}/cancel", headers=headers)
    ids["in_progress"] = await enqueue(client, headers)
    async with held(monkeypatch) as task:
        async with second_session() as db:
            ids["queued"] = (await queue.enqueue(db, "another_function", _owner_id=owner.id)).job_id
        ids["deferred"] = await enqueue_directly("x", _defer_by=3600, _owner_id=owner.id)
        assert {status: await listed(client, headers, status=status) for status in ids} == {
            status: [task_id] for status, task_id in ids.items()
        }
        assert {status: (await seen(client, ids[status], headers))["status"] for status in ids} == {
            status: status for status in ids
        }
        task.may_end.set()
    assert await listed(client, headers, function="another_function") == [ids["queued"]]
    assert await listed(client, headers, function=NAME, status="cancelled") == [ids["cancelled"]]
    assert await listed(client, headers, function="another_function", status="dead") == []
    assert await listed(client, headers, function="anything' OR 1") == []


@pytest.mark.parametrize("params", [{"status": "odd"}, {"function": "\0"}, {"function": "x" * 129}, {"page": 0}])
async def test_a_list_of_nonsense_is_a_broken_request(
    client: httpx2.AsyncClient, owner: User, settings: Settings, params: dict[str, Any]
) -> None:
    assert (await client.get("tasks", params=params, headers=signed_in(owner, settings))).status_code == 422


async def test_what_has_expired_is_not_listed(
    client: httpx2.AsyncClient, db: AsyncSession, owner: User, settings: Settings
) -> None:
    await enqueue(client, signed_in(owner, settings))
    await do_all_jobs(greet)
    await db.exec(update(Job).values(expires_at=utc_now() - timedelta(seconds=1)))
    await db.commit()
    assert await listed(client, signed_in(owner, settings)) == []


# ---- Cancelling ----


async def cancel(client: httpx2.AsyncClient, task_id: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    return await client.post(f"tasks/task/{task_id}/cancel", headers=headers)


async def test_a_task_that_waits_is_cancelled_and_never_done(
    client: httpx2.AsyncClient, owner: User, settings: Settings
) -> None:
    headers = signed_in(owner, settings)
    task_id = await enqueue(client, headers)
    cancelled = await cancel(client, task_id, headers)
    assert cancelled.status_code == 200
    assert (cancelled.json()["status"], cancelled.json()["success"]) == ("cancelled", False)
    assert cancelled.headers["Cache-Control"] == "no-store"
    assert [ended.id for ended in await do_all_jobs(greet)] == []
    assert (await seen(client, task_id, headers))["attempt"] == 0


async def test_a_task_that_runs_is_cancelled_and_its_effect_rolled_back(
    client: httpx2.AsyncClient, owner: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = signed_in(owner, settings)
    task_id = await enqueue(client, headers)
    async with held(monkeypatch):
        told = await cancel(client, task_id, headers)
        assert (told.status_code, told.json()["status"]) == (200, "in_progress")
    ended = await seen(client, task_id, headers)
    assert (ended["status"], ended["success"], ended["attempt"], ended["error"]) == ("cancelled", False, 1, None)
    assert ended["finished_at"]
    assert await tier_names(client) == []


async def test_a_task_that_runs_and_is_not_cancelled_has_its_effect(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue(client)
    async with held(monkeypatch) as task:
        assert await tier_names(client) == [], "not before it has ended"
        await client.get("tiers", headers={"Cache-Control": "no-cache"})
        task.may_end.set()
    async with second_session() as db:
        assert [tier.name for tier in await db.exec(select(Tier))] == ["hello"]


async def test_a_task_that_has_ended_cannot_be_cancelled(
    client: httpx2.AsyncClient, owner: User, settings: Settings
) -> None:
    headers = signed_in(owner, settings)
    for ending in (greet, fail):
        task_id = await enqueue(client, headers)
        await do_all_jobs(ending)
        before = await seen(client, task_id, headers)
        refused = await cancel(client, task_id, headers)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:problem-type:job-has-ended")
        assert await seen(client, task_id, headers) == before
    task_id = await enqueue(client, headers)
    assert [(await cancel(client, task_id, headers)).status_code for _ in range(2)] == [200, 409]


async def test_who_may_cancel(
    client: httpx2.AsyncClient, owner: User, other: User, admin: User, settings: Settings
) -> None:
    theirs, nobodys = await enqueue(client, signed_in(owner, settings)), await enqueue(client)
    assert [(await cancel(client, task_id)).status_code for task_id in (theirs, nobodys, UNKNOWN_ID)] == 3 * [401]
    refused = [await cancel(client, task_id, signed_in(other, settings)) for task_id in (theirs, nobodys)]
    assert [answer.status_code for answer in refused] == [404, 403]
    for task_id in (theirs, nobodys):
        cancelled = await cancel(client, task_id, signed_in(admin, settings))
        assert (cancelled.status_code, cancelled.json()["cancel_requested"]) == (200, True)
    assert (await seen(client, theirs, signed_in(owner, settings)))["status"] == "cancelled"


# ---- Replaying ----


async def replay(client: httpx2.AsyncClient, task_id: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    return await client.post(f"tasks/task/{task_id}/replay", headers=headers)


async def test_a_dead_or_cancelled_task_can_be_done_again_from_its_first_attempt(
    client: httpx2.AsyncClient, owner: User, admin: User, settings: Settings
) -> None:
    headers = signed_in(owner, settings)
    dead = await enqueue(client, headers)
    await do_all_jobs(fail, max_tries=2)
    cancelled = await enqueue(client, headers)
    await cancel(client, cancelled, headers)
    await queue.pool.delete(queue.DEFAULT_QUEUE)

    for task_id in (dead, cancelled):
        again = await replay(client, task_id, signed_in(admin, settings))
        assert again.status_code == 200
        assert again.json().keys() >= DETAILS
        told = {name: again.json()[name] for name in ("status", "attempt", "success", "result", "finished_at")}
        assert told == {name: NEW_JOB[name] for name in told}
    assert await queue.pool.zcard(queue.DEFAULT_QUEUE) == 2, "both were sent"

    async def which(ctx: Context, message: str) -> str:
        return f"{message}, attempt {ctx['job_try']}"

    await do_all_jobs(which)
    for task_id in (dead, cancelled):
        done = await seen(client, task_id, headers)
        assert (done["status"], done["success"], done["error"]) == ("complete", True, None)
        assert (done["result"], done["attempt"]) == ("hello, attempt 1", 1)


async def test_only_what_is_dead_or_cancelled_can_be_replayed(
    client: httpx2.AsyncClient, admin: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = signed_in(admin, settings)
    done = await enqueue(client, headers)
    await do_all_jobs(greet)
    running = await enqueue(client, headers)
    async with held(monkeypatch) as task:
        waiting = await enqueue_directly("later", _defer_by=3600)
        for task_id in (done, running, waiting):
            before = await seen(client, task_id, headers)
            refused = await replay(client, task_id, headers)
            assert (refused.status_code, refused.json()["type"]) == (409, "urn:problem-type:job-not-replayable")
            assert await seen(client, task_id, headers) == before
        await cancel(client, waiting, headers)
        task.may_end.set()


async def test_who_may_replay(client: httpx2.AsyncClient, owner: User, settings: Settings) -> None:
    headers = signed_in(owner, settings)
    task_id = await enqueue(client, headers)
    await cancel(client, task_id, headers)
    assert (await replay(client, task_id)).status_code == 401
    assert (await replay(client, task_id, headers)).status_code == 403
    assert (await replay(client, UNKNOWN_ID, headers)).status_code == 403
    assert (await seen(client, task_id, headers))["status"] == "cancelled"


# ---- When something is away or gone ----


async def test_without_valkey_everything_works(settings: Settings) -> None:
    away = settings.model_copy(update={"REDIS_QUEUE_PORT": free_port()})
    app = create_application(build_router(away), away)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with second_session() as db:
            headers = signed_in(await create_superuser(db), settings)
        done, cancelled, replayed = [await enqueue(client, headers) for _ in range(3)]
        for task_id in (cancelled, replayed):
            assert (await cancel(client, task_id, headers)).status_code == 200
        assert (await replay(client, replayed, headers)).status_code == 200
        assert set(await listed(client, headers, status="queued")) == {done, replayed}
        await do_all_jobs(greet)
        assert set(await listed(client, headers, status="complete")) == {done, replayed}
        assert (await client.get("http://test/metrics")).status_code == 200


@pytest.mark.parametrize("fault", [("CONFIG", "SET", "maxmemory", "1mb"), ("REPLICAOF", "127.0.0.1", "1")])
async def test_a_valkey_that_takes_nothing_refuses_no_task(
    client: httpx2.AsyncClient, settings: Settings, fault: tuple[str, ...]
) -> None:
    with Redis(host=settings.REDIS_QUEUE_HOST, port=settings.REDIS_QUEUE_PORT) as valkey:
        valkey.execute_command(*fault)
        try:
            task_id = await enqueue(client)
        finally:
            valkey.replicaof("NO", "ONE")
            valkey.config_set("maxmemory", 0)
    await do_all_jobs(greet)
    assert (await seen(client, task_id))["status"] == "complete"


async def test_without_postgresql_tasks_are_503(settings: Settings) -> None:
    away = settings.model_copy(update={"POSTGRES_PORT": free_port()})
    app = create_application(build_router(away), away)
    async with app.router.lifespan_context(app), client_of(app) as client:
        for path in ("", "/events"):
            read = await client.get(f"tasks/task/{UNKNOWN_ID}{path}")
            assert (read.status_code, read.json()["type"]) == (503, "urn:problem-type:database-unavailable")
        assert (await post(client)).status_code == 503
    assert await asyncio.to_thread(waiting_in_valkey, settings) == 0


def waiting_in_valkey(settings: Settings) -> Any:
    with Redis(host=settings.REDIS_QUEUE_HOST, port=settings.REDIS_QUEUE_PORT) as valkey:
        return valkey.zcard(queue.DEFAULT_QUEUE)


async def test_erasing_a_user_removes_their_tasks(
    client: httpx2.AsyncClient,
    db: AsyncSession,
    owner: User,
    admin: User,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = signed_in(owner, settings)
    await enqueue(client, headers)
    await do_all_jobs(greet)
    await enqueue(client, headers)
    async with held(monkeypatch) as task:
        deferred = await enqueue_directly("later", _owner_id=owner.id, _defer_by=3600)
        kept = await enqueue_directly("kept", _owner_id=admin.id, _defer_by=3600)
        erased = await client.delete(f"db_user/{owner.username}", headers=signed_in(admin, settings))
        assert erased.status_code == 200
        assert list(await db.exec(select(Job.id))) == [kept]
        task.may_end.set()
    assert (await client.get(f"tasks/task/{deferred}", headers=signed_in(admin, settings))).status_code == 404
    assert "hello" not in [tier.name for tier in await db.exec(select(Tier))], "what ran for them is rolled back"


# ---- Metrics ----


async def test_the_metrics_say_what_waits_runs_and_is_dead(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gauges() -> dict[str, float]:
        told = (await client.get("http://test/metrics")).text
        lines = [line.rpartition(" ") for line in told.splitlines() if line.startswith("slipway_job")]
        return {name: float(value) for name, _, value in lines}

    def of(state: str, name: str = queue.DEFAULT_QUEUE) -> str:
        return f'slipway_jobs{{queue="{name}",state="{state}"}}'

    await enqueue(client)
    await do_all_jobs(fail)
    await enqueue_directly("long", _queue_name=queue.LONG_QUEUE)
    await enqueue(client)
    now = await gauges()
    assert [now[of(state)] for state in ("queued", "deferred", "running", "dead")] == [1, 0, 0, 1]
    assert now[of("queued", queue.LONG_QUEUE)] == 1
    assert now[f'slipway_job_oldest_seconds{{queue="{queue.DEFAULT_QUEUE}"}}'] > 0
    assert now[f'slipway_job_attempts_total{{function="{NAME}",result="dead"}}'] >= 1

    async with second_session() as db:
        await db.exec(update(Job).where(col(Job.queue) == queue.LONG_QUEUE).values(state=JobState.CANCELLED))
    async with held(monkeypatch) as task:
        await enqueue_directly("later", _defer_by=3600)
        now = await gauges()
        assert [now[of(state)] for state in ("queued", "deferred", "running", "dead")] == [0, 1, 1, 1]
        assert now[of("queued", queue.LONG_QUEUE)] == 0
        async with second_session() as db:
            await db.exec(update(Job).where(col(Job.state) == JobState.QUEUED).values(state=JobState.CANCELLED))
        task.may_end.set()
