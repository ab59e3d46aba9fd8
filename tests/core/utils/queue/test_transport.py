"""Ids go to the workers by when they are due, and to one worker each."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils import queue
from app.core.utils.queue import transport as transport_module
from app.core.utils.queue.sending import current_transport
from app.core.utils.queue.transport import MOST_AT_ONCE, Transport
from app.core.utils.redis_link import Link, LinkDown
from scripts.embedded import free_port

pytestmark = pytest.mark.anyio

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def transport(db: AsyncSession) -> Transport:
    """The running app's."""
    return current_transport()


async def test_what_is_due_is_taken_the_longest_due_first(transport: Transport) -> None:
    await transport.send_all("q", {"second": NOW - SECOND})
    await transport.send_all("q", {"first": NOW - 2 * SECOND})
    await transport.send_all("q", {"just now": NOW})
    await transport.send_all("q", {"not yet": NOW + SECOND})
    await transport.send_all("other", {"another's": NOW})
    assert await transport.take("q", NOW, 2) == ["first", "second"]
    assert await transport.take("q", NOW, 10) == ["just now"]
    assert await transport.take("q", NOW, 10) == []
    assert await transport.take("q", NOW + SECOND, 10) == ["not yet"]


async def test_what_is_sent_twice_is_there_once_and_due_as_was_said_last(transport: Transport) -> None:
    await transport.send_all("q", {"a": NOW})
    await transport.send_all("q", {"a": NOW + SECOND})
    assert await transport.take("q", NOW, 10) == []
    assert await transport.take("q", NOW + SECOND, 10) == ["a"]


async def test_many_are_sent_and_taken_in_parts(transport: Transport) -> None:
    ids = [f"{number:05}" for number in range(2 * MOST_AT_ONCE + 1)]
    await transport.send_all("q", dict.fromkeys(ids, NOW))
    assert await transport.missing("q", [*ids, "missing", *ids[:5], "also missing"]) == {"missing", "also missing"}
    taken = [await transport.take("q", NOW, 1_000_000) for _ in range(4)]
    assert [len(some) for some in taken] == [MOST_AT_ONCE, MOST_AT_ONCE, 1, 0]
    assert [job_id for some in taken for job_id in some] == ids
    assert await transport.missing("q", ids[:2]) == set(ids[:2])


async def test_nothing_is_nothing(transport: Transport) -> None:
    await transport.send_all("q", {})
    assert await transport.missing("q", []) == set()


async def test_two_that_take_at_once_never_take_the_same(transport: Transport) -> None:
    await transport.send_all("q", {f"{number}": NOW for number in range(500)})
    taken = await asyncio.gather(*(transport.take("q", NOW, 7) for _ in range(80)))
    ids = [job_id for some in taken for job_id in some]
    assert len(ids) == len(set(ids)) == 500


async def test_what_is_no_text_does_not_stop_what_is(transport: Transport) -> None:
    await queue.pool.zadd("q", {b"\xff\xfe": 1, b"a\x00": 2, b"good": 3})
    assert await transport.take("q", NOW, 10) == ["\ufffd\ufffd", "a\x00", "good"]


async def test_that_it_was_emptied_is_heard_once(transport: Transport) -> None:
    await queue.pool.flushdb()
    assert [await transport.was_emptied() for _ in range(3)] == [True, False, False]
    await queue.pool.flushdb()
    assert sorted(await asyncio.gather(*(transport.was_emptied() for _ in range(5))))[-2:] == [False, True]


async def test_it_is_the_turn_of_one_at_a_time(transport: Transport) -> None:
    turns = await asyncio.gather(*(transport.is_ones_turn("q", 60) for _ in range(5)))
    assert turns.count(True) == 1
    assert await transport.is_ones_turn("other", 60)
    assert 0 < await queue.pool.pttl(f"{transport_module.MARKER}:q") <= 60_000


async def test_a_server_that_is_away_is_an_error_at_once() -> None:
    link = Link(f"redis://127.0.0.1:{free_port()}/0", "away")
    await link.open()
    away = Transport(link)
    try:
        for action in (
            away.send_all("q", {"a": NOW}),
            away.take("q", NOW, 1),
            away.missing("q", ["a"]),
            away.was_emptied(),
            away.is_ones_turn("q", 1),
            away.ping(),
        ):
            with pytest.raises(LinkDown):
                await action
    finally:
        await link.close()
