"""A task followed as server-sent events, over real connections."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router, job_events
from app.core.config import Settings
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.queue import feed as feed_module
from app.core.worker.options import job
from app.core.worker.testing import drain_jobs
from scripts.embedded import free_port
from tests.conftest import opened_session, second_session
from tests.helper import counted_statements, create_superuser, create_user, signed_in
from tests.processes import process, wait_for_answer

pytestmark = pytest.mark.anyio

NAME = "sample_background_task"
PATIENCE = 20  # seconds, for a machine that is busy with other tests

Context = dict[Any, Any]


@dataclass
class Event:
    kind: str
    task: dict[str, Any]
    retry: int


class Stream:
    """An open answer, read event by event."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> Event | None:
        """The next event; None at the end of the answer."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if not line and fields:
                    return Event(fields["event"], json.loads(fields["data"]), int(fields["retry"]))
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
        assert not fields, "an event was cut off"
        return None

    async def rest(self) -> list[Event]:
        """What is still to come, until the end of the answer."""
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events


@asynccontextmanager
async def followed(
    client: httpx2.AsyncClient, task_id: str, headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    async with client.stream("GET", f"tasks/task/{task_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        yield Stream(answer)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that talks to a started app over real connections: the in-process transport collects whole answers."""
    port = free_port()
    config = uvicorn.Config(app, port=port, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(PATIENCE):
            while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
                await asyncio.sleep(0.01)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=PATIENCE) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with served(app) as client:
        yield client


async def enqueue(*args: Any, **options: Any) -> str:
    async with second_session() as db:
        return (await queue.enqueue(db, NAME, *(args or ("hello",)), **options)).job_id


async def greet(_: Context, message: str) -> str:
    return message


async def do_all_jobs(task: Any, **options: Any) -> None:
    await drain_jobs([job(task, name=NAME, max_tries=options.pop("max_tries", 1))], allow_dead=True, **options)


# ---- What is told ----


async def test_a_task_is_followed_from_its_wait_to_its_end(client: httpx2.AsyncClient) -> None:
    steps = [asyncio.Event() for _ in range(3)]

    async def count(ctx: Context, message: str) -> str:
        for done, step in enumerate(steps, 1):
            await queue.progress(ctx, done, len(steps), f"step {done}")
            await step.wait()
        return message

    task_id = await enqueue()
    async with followed(client, task_id) as stream:
        first = await stream.next()
        assert first is not None
        assert (first.kind, first.task["status"], first.task["id"]) == ("progress", "queued", task_id)
        assert first.task == (await client.get(f"tasks/task/{task_id}")).json()
        assert first.retry > 0

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(do_all_jobs(count))
            told: list[float] = []
            while not told or told[-1] != 1:
                event = await stream.next()
                assert event is not None
                assert (event.kind, event.task["status"]) == ("progress", "in_progress")
                told.append((event.task["progress"] or {"done": 0})["done"])
            for step in steps:
                step.set()
        *between, end = await stream.rest()
    dones = told + [event.task["progress"]["done"] for event in between]
    assert dones == sorted(dones)
    assert {event.kind for event in between} <= {"progress"}
    assert (end.kind, end.task["status"], end.task["result"]) == ("end", "complete", "hello")
    assert end.task["progress"] == {"done": 3, "total": 3, "message": "step 3"}
    assert end.task == (await client.get(f"tasks/task/{task_id}")).json()


@pytest.mark.parametrize("how", ["complete", "dead", "cancelled"])
async def test_of_a_task_that_has_ended_there_is_its_end_alone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, how: str
) -> None:
    async def fail(_: Context, message: str) -> None:
        raise ValueError(message)

    task_id = await enqueue()
    if how == "cancelled":
        headers = signed_in(await create_superuser(db), settings)
        assert (await client.post(f"tasks/task/{task_id}/cancel", headers=headers)).status_code == 200
    await do_all_jobs(fail if how == "dead" else greet)
    async with followed(client, task_id) as stream:
        (end,) = await stream.rest()
    assert (end.kind, end.task["status"]) == ("end", how)


async def test_a_failed_attempt_is_progress_and_the_last_one_the_end(client: httpx2.AsyncClient) -> None:
    async def fail(_: Context, message: str) -> None:
        raise ValueError(message)

    task_id = await enqueue()
    async with followed(client, task_id) as stream:
        await stream.next()
        await do_all_jobs(fail, max_tries=2, skip_delays=False)
        while (event := await stream.next()) is not None and event.task["error"] is None:
            pass
        assert event is not None
        assert (event.kind, event.task["status"], event.task["error"]) == ("progress", "deferred", "ValueError: hello")
        await do_all_jobs(fail, max_tries=2)
        end = (await stream.rest())[-1]
    assert (end.kind, end.task["status"], end.task["attempt"]) == ("end", "dead", 2)


async def test_its_cancellation_is_the_end(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user = await create_user(db)
    headers = signed_in(user, settings)
    task_id = await enqueue(_owner_id=user.id)
    async with followed(client, task_id, headers) as stream:
        await stream.next()
        assert (await client.post(f"tasks/task/{task_id}/cancel", headers=headers)).status_code == 200
        (end,) = await stream.rest()
    assert (end.kind, end.task["status"]) == ("end", "cancelled")


@pytest.mark.parametrize("result", ["a\nb\r\nc", "a\u2028b\x85c\x1cd", "event: end\n\ndata: {}", "\0", "\ud800"])
async def test_odd_results_do_not_break_the_stream(client: httpx2.AsyncClient, result: str) -> None:
    async def give(_: Context, message: str) -> str:
        return result

    task_id = await enqueue()
    await do_all_jobs(give)
    answer = await client.get(f"tasks/task/{task_id}/events")
    text = answer.content.decode()
    (data,) = [line for line in text.split("\n") if line.startswith("data: ")]
    assert json.loads(data.removeprefix("data: ")) == (await client.get(f"tasks/task/{task_id}")).json()
    assert text.count("event: ") - data.count("event: ") == 1


async def test_a_task_that_is_removed_is_followed_no_more(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    task_id = await enqueue(_owner_id=user.id)
    async with followed(client, task_id, signed_in(user, settings)) as stream:
        await stream.next()
        erased = await client.delete(f"db_user/{user.username}", headers=signed_in(admin, settings))
        assert erased.status_code == 200
        (last,) = await stream.rest()
        assert (last.kind, last.task) == ("end", {"id": task_id})


# ---- To whom, and for how long ----


async def test_the_answer_is_a_stream_that_nobody_keeps(client: httpx2.AsyncClient) -> None:
    task_id = await enqueue()
    await do_all_jobs(greet)
    async with followed(client, task_id) as stream:
        headers = stream.answer.headers
        assert headers["Content-Type"].partition(";")[0] == "text/event-stream"
        assert "no-store" in headers["Cache-Control"]
        assert "public" not in headers["Cache-Control"]
        assert headers["X-Accel-Buffering"] == "no"
        await stream.rest()


async def test_who_may_follow_is_who_may_read(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    owner, other, admin = await create_user(db), await create_user(db), await create_superuser(db)
    theirs, nobodys = await enqueue(_owner_id=owner.id), await enqueue()
    guessable = await enqueue(_job_id="nightly")
    await do_all_jobs(greet)

    async def followed_by(headers: dict[str, str]) -> list[int]:
        ids = (theirs, nobodys, guessable, "0" * 32)
        return [(await client.get(f"tasks/task/{i}/events", headers=headers)).status_code for i in ids]

    assert await followed_by({}) == [404, 200, 404, 404]
    assert await followed_by(signed_in(other, settings)) == [404, 200, 404, 404]
    assert await followed_by(signed_in(owner, settings)) == [200, 200, 404, 404]
    assert await followed_by(signed_in(admin, settings)) == [200, 200, 200, 404]
    assert set(await followed_by({"Authorization": "Bearer garbage"})) == {401}


async def test_not_even_superusers_are_streamed_what_it_was_called_with(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    task_id = await enqueue("a secret")
    await drain_jobs([job(_say_nothing, name=NAME)])
    answer = await client.get(f"tasks/task/{task_id}/events", headers=signed_in(await create_superuser(db), settings))
    assert "event: end" in answer.text
    assert "a secret" not in answer.text


async def _say_nothing(_: Context, message: str) -> None:
    pass


async def test_a_stream_ends_when_the_token_does(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    task_id = await enqueue(_owner_id=user.id)
    short = settings.model_copy(update={"ACCESS_TOKEN_EXPIRE_MINUTES": 2 / 60})
    async with followed(client, task_id, signed_in(user, short)) as stream, asyncio.timeout(PATIENCE):
        events = await stream.rest()
    assert [event.kind for event in events] == ["progress"]


# ---- What it costs ----


async def test_open_streams_hold_no_database_connection(settings: Settings) -> None:
    small = settings.model_copy(update={"POSTGRES_POOL_SIZE": 1})
    app = create_application(build_router(small), small)
    async with app.router.lifespan_context(app), served(app) as client, AsyncExitStack() as stack:
        async with second_session() as db:
            headers = signed_in(await create_user(db), small)
        task_id = await enqueue()
        streams = [
            await stack.enter_async_context(followed(client, task_id, who)) for who in (None, headers) for _ in range(5)
        ]
        for stream in streams:
            assert await stream.next() is not None
        answers = await asyncio.gather(*(client.get(path) for path in ("tiers", f"tasks/task/{task_id}") * 5))
        assert {answer.status_code for answer in answers} == {200}
        await do_all_jobs(greet)
        for stream in streams:
            assert [event.kind for event in await stream.rest()][-1] == "end"


async def test_many_who_follow_cost_one_statement_per_look_and_none_once_they_have_left(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    ids = [await enqueue() for _ in range(3)]
    with counted_statements() as statements:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(followed(client, task_id)) for task_id in ids for _ in range(5)]
            for stream in streams:
                await stream.next()
            assert 1 <= await looks_in_a_second(statements) <= 8, "however many they are"
        async with asyncio.timeout(PATIENCE):
            while await looks_in_a_second(statements):
                pass
    async with followed(client, ids[0]) as stream:
        assert await stream.next() is not None, "who comes after that is told all the same"


async def looks_in_a_second(statements: list[str]) -> int:
    statements.clear()
    await asyncio.sleep(1)
    return sum("FROM job" in statement for statement in statements)


async def test_one_caller_follows_so_many_tasks_and_no_more(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "MOST_OF_ONE", 2)
    other = signed_in(await create_user(db), settings)
    task_id = await enqueue()
    async with followed(client, task_id) as first, followed(client, task_id) as second:
        assert (await first.next(), await second.next()) != (None, None)
        refused = await client.get(f"tasks/task/{task_id}/events")
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:problem-type:too-many-streams")
        async with followed(client, task_id, other) as third:
            assert await third.next() is not None, "somebody else"


async def test_a_process_has_so_many_followers_and_no_more(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "MOST", 1)
    headers = signed_in(await create_user(db), settings)
    task_id = await enqueue()
    async with followed(client, task_id) as stream:
        await stream.next()
        assert (await client.get(f"tasks/task/{task_id}/events", headers=headers)).status_code == 429


async def test_whoever_signs_out_follows_no_more(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "ASK_AGAIN", 0.2)
    user = await create_user(db)
    headers = signed_in(user, settings)
    task_id = await enqueue(_owner_id=user.id)
    async with followed(client, task_id, headers) as stream:
        assert await stream.next() is not None
        await asyncio.sleep(0.7)
        assert (await client.post("logout", headers=headers)).status_code == 200
        assert await stream.rest() == [], "and what has not changed was not told again"


# ---- When the server is stopped ----


async def test_a_server_that_is_told_to_stop_ends_its_streams_and_itself(settings: Settings) -> None:
    port = free_port()
    command = ("uvicorn", "src.app.main:app", "--port", str(port), "--log-level", "warning")
    with process(*command) as server:
        url = f"http://127.0.0.1:{port}/api/v1/"
        await asyncio.to_thread(wait_for_answer, f"{url}health", server)
        async with opened_session(settings), httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as client:
            task_id = await enqueue()
            async with followed(client, task_id) as stream:
                assert await stream.next() is not None
                os.kill(server.pid, signal.SIGTERM)
                async with asyncio.timeout(PATIENCE):
                    assert await stream.rest() == [], "it ends, and is not cut off"
        assert await asyncio.to_thread(server.wait, PATIENCE) in {0, -signal.SIGTERM}
