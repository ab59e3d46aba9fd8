"""Background tasks over HTTP, done by a real worker in this process."""

import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from arq.worker import Worker, func
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.core.config import Settings
from app.core.setup import create_application
from app.core.utils import queue
from app.models.user import User
from scripts.embedded import free_port
from tests.conftest import client_of
from tests.helper import create_superuser, create_user, signed_in

pytestmark = pytest.mark.anyio

NEW_JOB = {"attempt": None, "started_at": None, "finished_at": None, "success": None, "result": None}


async def enqueue(client: httpx2.AsyncClient, headers: dict[str, str] | None = None) -> str:
    answer = await client.post("tasks/task", params={"message": "hello"}, headers=headers)
    assert answer.status_code == 201
    assert answer.json().keys() == {"id"}
    return str(answer.json()["id"])


async def do_all_jobs(task: Callable[[dict[Any, Any], str], Awaitable[Any]]) -> None:
    """Works until the queue is empty, with this in place of the sample task, which takes five seconds."""
    worker = Worker(
        [func(task, name="sample_background_task")],  # type: ignore[arg-type]  # arq wants a protocol of any arguments
        redis_pool=queue.pool,
        burst=True,
        handle_signals=False,
        poll_delay=0.01,
        job_serializer=queue.dumps,
        job_deserializer=queue.loads,
    )
    await worker.main()


@pytest.fixture(autouse=True)
async def _empty_queue(client: httpx2.AsyncClient) -> None:
    await queue.pool.flushdb()  # Other tests of this process have left jobs in it that nobody did.


async def test_a_task_is_queued_then_done(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue(client)

    queued = (await client.get(f"tasks/task/{task_id}")).json()
    assert queued.pop("enqueued_at")
    assert queued == {"id": task_id, "function": "sample_background_task", "status": "queued"} | NEW_JOB

    async def greet(_: dict[Any, Any], message: str) -> str:
        running = (await client.get(f"tasks/task/{task_id}")).json()
        return f"{message} while {running['status']}"

    await do_all_jobs(greet)

    done = (await client.get(f"tasks/task/{task_id}")).json()
    assert done.keys() == queued.keys() | {"enqueued_at"}
    assert (done["status"], done["success"], done["attempt"]) == ("complete", True, 1)
    assert done["result"] == "hello while in_progress"
    assert done["enqueued_at"] <= done["started_at"] <= done["finished_at"]


async def test_a_task_that_ends_while_it_is_looked_at_has_its_result(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def greet(_: dict[Any, Any], message: str) -> str:
        return message

    task_id = await enqueue(client)
    for step in ("status", "info"):
        original = getattr(queue.ArqJob, step)

        async def ends_first(job: queue.ArqJob, original: Any = original) -> Any:
            answer = await original(job)
            await do_all_jobs(greet)
            return answer

        monkeypatch.setattr(queue.ArqJob, step, ends_first)
        seen = (await client.get(f"tasks/task/{task_id}")).json()
        assert (seen["status"] == "complete") is (seen["result"] == "hello") is (seen["success"] is True), step
        monkeypatch.setattr(queue.ArqJob, step, original)


async def test_a_tasks_state_is_never_kept(client: httpx2.AsyncClient) -> None:
    assert (await client.get(f"tasks/task/{await enqueue(client)}")).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("fault", [("CONFIG", "SET", "maxmemory", "1mb"), ("REPLICAOF", "127.0.0.1", "1")])
async def test_a_queue_that_takes_nothing_is_503(
    client: httpx2.AsyncClient, settings: Settings, fault: tuple[str, ...]
) -> None:
    with Redis(host=settings.REDIS_QUEUE_HOST, port=settings.REDIS_QUEUE_PORT) as valkey:
        valkey.execute_command(*fault)
        try:
            refused = await client.post("tasks/task", params={"message": "x"})
        finally:
            valkey.replicaof("NO", "ONE")
            valkey.config_set("maxmemory", 0)
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:problem-type:queue-unavailable"


async def test_a_failed_task_says_why(client: httpx2.AsyncClient) -> None:
    async def fail(_: dict[Any, Any], message: str) -> str:
        raise ValueError(f"cannot say {message}")

    task_id = await enqueue(client)
    await do_all_jobs(fail)

    answer = await client.get(f"tasks/task/{task_id}")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["success"]) == ("complete", False)
    assert answer.json()["result"] == "ValueError: cannot say hello"


async def test_a_result_that_utf8_cannot_hold_can_be_read(client: httpx2.AsyncClient) -> None:
    async def surrogate(_: dict[Any, Any], message: str) -> str:
        return f"{message} \ud800"

    task_id = await enqueue(client)
    await do_all_jobs(surrogate)

    answer = await client.get(f"tasks/task/{task_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "complete"


@pytest.mark.parametrize("result", [{1, 2}, b"bytes", object()])
async def test_a_result_that_json_cannot_hold_is_a_failure(client: httpx2.AsyncClient, result: Any) -> None:
    async def give(_: dict[Any, Any], message: str) -> Any:
        return result

    task_id = await enqueue(client)
    await do_all_jobs(give)

    done = (await client.get(f"tasks/task/{task_id}")).json()
    assert (done["status"], done["success"]) == ("complete", False)


async def test_a_users_task_is_seen_by_them_and_superusers(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    owner, other, admin = await create_user(db), await create_user(db), await create_superuser(db)
    theirs, nobodys = await enqueue(client, signed_in(owner, settings)), await enqueue(client)

    async def seen_by(user: User | None) -> tuple[bool, bool]:
        headers = signed_in(user, settings) if user else {}
        answers = [await client.get(f"tasks/task/{task_id}", headers=headers) for task_id in (theirs, nobodys)]
        return answers[0].status_code == 200, answers[1].status_code == 200

    assert await seen_by(None) == (False, True)
    assert await seen_by(owner) == (True, True)
    assert await seen_by(other) == (False, True)
    assert await seen_by(admin) == (True, True)


async def test_what_one_may_not_see_looks_like_what_is_not_there(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    owner, other = await create_user(db), await create_user(db)
    theirs = await enqueue(client, signed_in(owner, settings))
    job = {"f": "sample_background_task", "a": ("x",), "k": {}, "t": 1, "et": 1}
    pickled, odd = "a" * 32, "b" * 32
    await queue.pool.set(f"arq:job:{pickled}", pickle.dumps(job))
    await queue.pool.set(f"arq:result:{pickled}", pickle.dumps(job | {"s": True, "r": "x", "st": 1, "ft": 1}))
    await queue.pool.set(f"arq:job:{odd}", b'["JSON, but no job"]')
    unowned = theirs.rpartition("-")[2]

    answers = [
        await client.get(f"tasks/task/{task_id}", headers=signed_in(other, settings))
        for task_id in (theirs, unowned, f"{other.id}-{unowned}", f"-{unowned}", "0" * 32, pickled, odd)
    ]
    assert {answer.status_code for answer in answers} == {404}
    documents = [answer.json() | {"request_id": ""} for answer in answers]
    assert all(document == documents[0] for document in documents)
    assert documents[0]["type"] == "urn:problem-type:job-not-found"


async def test_a_bad_token_enqueues_nothing(client: httpx2.AsyncClient) -> None:
    refused = await client.post("tasks/task", params={"message": "x"}, headers={"Authorization": "Bearer garbage"})

    assert refused.status_code == 401
    assert await queue.pool.zcard("arq:queue") == 0


async def test_without_valkey_tasks_are_503_and_the_rest_works(settings: Settings) -> None:
    settings = settings.model_copy(update={"REDIS_QUEUE_PORT": free_port()})
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        for answer in (
            await client.post("tasks/task", params={"message": "x"}),
            await client.get(f"tasks/task/{'0' * 32}"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["Content-Type"] == "application/problem+json"
        assert (await client.get("tiers")).status_code == 200
