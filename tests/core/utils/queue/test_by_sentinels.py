"""ARQ's client and ARQ's own connections by way of sentinels who have a password of their own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from arq.connections import RedisSettings
from arq.worker import async_check_health, func
from redis.exceptions import RedisError

from app.core.config import EnvironmentSettings, RedisQueueSettings, Settings
from app.core.utils import queue
from app.core.utils.queue.arq_pool import BySentinels, JobPool, create_pool, pool_to
from app.core.worker.worker import DurableWorker
from tests.core.utils.test_redis_link import nothing_unseen
from tests.redis_topologies import SERVICE, Watched, patiently, watched_by_sentinels
from tests.smtp_server import self_signed_certificate

# ARQ closes its client by a name that redis-py has deprecated.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")]

(PLAIN_WORKER,) = DurableWorker.__bases__  # ARQ's; under its own name is ours.
PASSWORD, OF_SENTINELS = "of-the-servers", "of-the-sentinels"


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with watched_by_sentinels(PASSWORD, OF_SENTINELS) as watched:
        yield watched


class QueueAlone(EnvironmentSettings, RedisQueueSettings):
    """Without a database."""


def settings_of(url: str) -> QueueAlone:
    return QueueAlone.model_validate({"REDIS_QUEUE_URL": url})


def connections_from_here(watched: Watched) -> list[int]:
    """At the sentinels and servers, beside the one that asks."""
    return [len(node.client.client_list(_type="normal")) for node in (*watched.sentinels, *watched.servers)]


async def test_the_pool_is_at_the_primary_whoever_that_is(watched: Watched) -> None:
    before = connections_from_here(watched)
    async with nothing_unseen(), pool_to(settings_of(watched.url()), durable=False) as pool:
        assert await pool.enqueue_job("greet", "hello") is not None
        assert watched.primary.client.zcard(queue.DEFAULT_QUEUE) == 1
        old = watched.primary
        await asyncio.to_thread(watched.hand_over)
        await until_it_works(pool)
        assert watched.primary is not old
        assert await pool.enqueue_job("greet", "hello again") is not None
        assert watched.primary.client.zcard(queue.DEFAULT_QUEUE) == 2
        await pool.aclose(close_connection_pool=True)
        await asyncio.to_thread(patiently, lambda: len(before) == len(connections_from_here(watched)))
    watched.mend()


async def until_it_works(pool: JobPool) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                await pool.set("key", 1)
                return
            except RedisError:
                await asyncio.sleep(0.05)


async def test_a_closed_pool_leaves_no_connection_to_sentinels(watched: Watched) -> None:
    await asyncio.to_thread(patiently, lambda: connections_from_here(watched)[0] > 0)
    before = sum(connections_from_here(watched))
    pool = pool_to(settings_of(watched.url()), durable=False)
    await pool.ping()
    assert sum(connections_from_here(watched)) > before
    await pool.aclose(close_connection_pool=True)
    await asyncio.to_thread(patiently, lambda: sum(connections_from_here(watched)) <= before)


async def test_a_worker_without_a_database_works_on_through_a_failover(watched: Watched) -> None:
    done: list[str] = []

    async def greet(_: dict[Any, Any], message: str) -> None:
        done.append(message)

    settings = settings_of(watched.url())
    worker: Any = PLAIN_WORKER(
        [func(greet, name="greet")],  # type: ignore[arg-type]  # arq wants a protocol of any arguments
        redis_settings=queue.worker_redis_settings(settings),
        handle_signals=False,
        poll_delay=0.02,
        job_serializer=queue.dumps,
        job_deserializer=queue.loads,
    )
    working = asyncio.create_task(worker.async_run())
    try:
        async with pool_to(settings, durable=False) as pool:
            await pool.enqueue_job("greet", "before")
            await until_done(done, "before")
            await asyncio.to_thread(watched.hand_over)
            await until_it_works(pool)
            await pool.enqueue_job("greet", "after")
            await until_done(done, "after")
            await pool.aclose(close_connection_pool=True)
        assert not working.done()
    finally:
        working.cancel()
        await asyncio.wait([working])
        await worker.close()
    watched.mend()


async def until_done(done: list[str], message: str) -> None:
    async with asyncio.timeout(20):
        while message not in done:  # noqa: ASYNC110 -- a worker does it
            await asyncio.sleep(0.02)


async def test_a_check_asks_the_primary(watched: Watched) -> None:
    redis_settings = queue.worker_redis_settings(settings_of(watched.url()))
    assert await async_check_health(redis_settings) == 1
    watched.primary.client.set(f"{queue.DEFAULT_QUEUE}:health-check", "all is well")
    assert await async_check_health(redis_settings) == 0
    watched.mend()


@pytest.mark.parametrize("wrong", [PASSWORD, OF_SENTINELS, SERVICE])
async def test_what_is_wrong_is_said_without_passwords(watched: Watched, wrong: str, settings: Settings) -> None:
    redis_settings = queue.worker_redis_settings(settings.model_copy(update={"REDIS_QUEUE_URL": None}))
    assert type(redis_settings) is RedisSettings
    url = watched.url().replace(wrong, f"not-{wrong}")
    by_sentinels = queue.worker_redis_settings(settings_of(url))
    assert isinstance(by_sentinels, BySentinels)
    by_sentinels.retry = None
    by_sentinels.retry_on_error = None
    by_sentinels.retry_on_timeout = False
    async with nothing_unseen():
        with pytest.raises(RedisError) as failed:
            await create_pool(by_sentinels)
    assert PASSWORD not in f"{failed.value!r} {by_sentinels!r}"
    assert OF_SENTINELS not in f"{failed.value!r} {by_sentinels!r}"


def test_certificates_are_for_arq_as_well(tmp_path: Path) -> None:
    file = str(self_signed_certificate(tmp_path))
    found = queue.worker_redis_settings(
        settings_of(f"rediss+sentinel://ada:p%40ss@a:1,b/jobs/3?ssl_ca_certs={quote(file, safe='')}")
    )
    assert isinstance(found, BySentinels)
    assert (found.ssl, found.ssl_ca_certs, found.sentinel, found.sentinel_master) == (True, file, True, "jobs")
    assert found.host == [("a", 1), ("b", 26379)]
    assert (found.username, found.password, found.database) == ("ada", "p@ss", 3)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys", "valkeys+sentinel"])
def test_arq_uses_tls_for_each_scheme_of_it(scheme: str) -> None:
    path = "/jobs" if "sentinel" in scheme else ""
    assert queue.worker_redis_settings(settings_of(f"{scheme}://a:1{path}")).ssl is True
    assert queue.worker_redis_settings(settings_of("valkey://a:1")).ssl is False
