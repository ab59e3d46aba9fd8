"""Many who ask at once: one computes, the others wait for that or, when it comes to nothing, help themselves."""

import asyncio
from collections.abc import Callable
from time import perf_counter

import httpx2
import pytest
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from app.core.exceptions.http_exceptions import NotFound
from app.core.utils.cache import cache
from tests.core.utils.cache.conftest import CacheSettings, Stored, running, states

pytestmark = pytest.mark.anyio


class Computation:
    """A cached route `GET /one/{my_id}` whose computations do, one after the other, what a test tells them to."""

    def __init__(self, lease: float = 5) -> None:
        self.router = APIRouter()
        self.begun = 0
        self.ended = 0
        self.slowly = [0.05]  # seconds, of the first, the second, ...; the last one goes for all that follow
        self.errors: dict[int, Exception] = {}  # by the number of the computation

        @self.router.get("/one/{my_id}")
        @cache("one", "my_id", lease=lease)
        async def read(my_id: int) -> str:
            self.begun += 1
            number = self.begun
            await asyncio.sleep(self.slowly[min(number, len(self.slowly)) - 1])
            if number in self.errors:
                raise self.errors[number]
            self.ended += 1
            return f"by {number}"

        @self.router.delete("/one/{my_id}")
        @cache("one", "my_id")
        async def erase(my_id: int) -> None:
            return None

    async def until_begun(self, count: int) -> None:
        await until(lambda: self.begun >= count)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 -- it can be about Valkey
            await asyncio.sleep(0.002)


async def ask_at_once(client: httpx2.AsyncClient, count: int) -> list[httpx2.Response]:
    return list(await asyncio.gather(*(client.get("one/7") for _ in range(count))))


async def test_of_many_who_ask_at_once_one_computes(cache_only: CacheSettings) -> None:
    computation = Computation()
    async with running(computation.router, cache_only) as client:
        answers = await ask_at_once(client, 300)

    assert computation.begun == 1
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b'"by 1"')}
    assert sorted(map(str, states(*answers))) == ["HIT"] * 299 + ["MISS"]
    assert len({answer.headers["ETag"] for answer in answers}) == 1


async def test_who_asks_for_another_resource_or_variant_does_not_wait(cache_only: CacheSettings) -> None:
    computation = Computation()
    computation.slowly = [0.5, 0]
    async with running(computation.router, cache_only) as client:
        slow = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        async with asyncio.timeout(0.3):
            others = [await client.get(path) for path in ("one/8", "one/7?other")]
        assert states(*others) == ["MISS", "MISS"]
        assert not slow.done()
        await slow


@pytest.mark.parametrize("error", [ZeroDivisionError(), NotFound()], ids=repr)
async def test_who_waits_for_an_error_computes_their_own_and_none_waits_for_the_next(
    cache_only: CacheSettings, stored: Stored, error: Exception
) -> None:
    computation = Computation()
    computation.slowly = [0.1]
    computation.errors = {1: error}
    async with running(computation.router, cache_only) as client:
        started = perf_counter()
        answers = await ask_at_once(client, 20)
        took = perf_counter() - started

    assert sorted(answer.status_code < 400 for answer in answers) == [False] + [True] * 19
    assert computation.begun == 20
    assert took < 1.2  # Twice as long as one and a bit; in turns it would be two seconds.
    assert all(lease.startswith(b":") for lease in stored.leases("one:7"))  # Nobody's.


async def test_when_every_computation_fails_all_fail_at_once(cache_only: CacheSettings) -> None:
    computation = Computation()
    computation.slowly = [0.1]
    computation.errors = dict.fromkeys(range(1, 100), ZeroDivisionError())
    async with running(computation.router, cache_only) as client:
        started = perf_counter()
        answers = await ask_at_once(client, 20)
        assert perf_counter() - started < 1.2
    assert {answer.status_code for answer in answers} == {500}


async def test_after_an_error_answers_are_stored_again(cache_only: CacheSettings) -> None:
    computation = Computation()
    computation.slowly = [0]
    computation.errors = {1: ZeroDivisionError()}
    async with running(computation.router, cache_only) as client:
        assert (await client.get("one/7")).status_code == 500
        await asyncio.sleep(1.05)
        assert states(await client.get("one/7"), await client.get("one/7")) == ["MISS", "HIT"]


async def test_who_waits_for_what_cannot_be_stored_computes_their_own(cache_only: CacheSettings) -> None:
    router, calls = APIRouter(), []

    @router.get("/one/{my_id}")
    @cache("one", "my_id")
    async def read(my_id: int) -> PlainTextResponse:
        calls.append(my_id)
        await asyncio.sleep(0.1)
        return PlainTextResponse("secret", headers={"Cache-Control": "no-store"})

    async with running(router, cache_only) as client:
        started = perf_counter()
        answers = await ask_at_once(client, 20)
        assert perf_counter() - started < 1.2
    assert len(calls) == 20
    assert set(states(*answers)) == {"BYPASS"}


async def test_a_caller_who_leaves_hands_the_computation_on(cache_only: CacheSettings, stored: Stored) -> None:
    computation = Computation()
    computation.slowly = [10, 0.02]
    async with running(computation.router, cache_only) as client:
        leaving = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        waiting = [asyncio.create_task(client.get("one/7")) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert computation.begun == 1

        leaving.cancel()
        async with asyncio.timeout(1):  # And not the lease's five seconds.
            answers = await asyncio.gather(*waiting)

    assert computation.begun == 2
    assert {answer.json() for answer in answers} == {"by 2"}
    assert stored.leases("one:7") == []


async def test_a_caller_who_leaves_alone_leaves_no_lease(cache_only: CacheSettings, stored: Stored) -> None:
    computation = Computation()
    computation.slowly = [10, 0]
    async with running(computation.router, cache_only) as client:
        leaving = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        assert len(stored.leases("one:7")) == 1
        leaving.cancel()
        await until(lambda: stored.all_keys() == set())
        async with asyncio.timeout(1):
            assert states(await client.get("one/7"), await client.get("one/7")) == ["MISS", "HIT"]


async def test_those_who_wait_can_leave_too(cache_only: CacheSettings) -> None:
    computation = Computation()
    computation.slowly = [0.2]
    async with running(computation.router, cache_only) as client:
        first = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        waiting = [asyncio.create_task(client.get("one/7")) for _ in range(10)]
        await asyncio.sleep(0.05)
        for leaving in waiting[::2]:
            leaving.cancel()
        answers = await asyncio.gather(*waiting[1::2], first)

    assert {answer.json() for answer in answers} == {"by 1"}
    assert computation.begun == 1


async def test_all_who_wait_can_leave_and_the_answer_is_stored(cache_only: CacheSettings) -> None:
    computation = Computation()
    computation.slowly = [0.1]
    async with running(computation.router, cache_only) as client:
        first = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        waiting = [asyncio.create_task(client.get("one/7")) for _ in range(3)]
        await asyncio.sleep(0.02)
        for leaving in waiting:
            leaving.cancel()
        await first
        async with asyncio.timeout(1):
            assert states(await client.get("one/7")) == ["HIT"]


async def test_who_takes_longer_than_the_lease_is_overtaken_and_the_first_to_finish_is_stored(
    cache_only: CacheSettings, stored: Stored
) -> None:
    computation = Computation(lease=0.1)
    computation.slowly = [0.8, 0.05]
    async with running(computation.router, cache_only) as client:
        slow = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        async with asyncio.timeout(0.6):
            waiting = await ask_at_once(client, 20)
        assert {answer.json() for answer in waiting} == {"by 2"}
        assert computation.begun == 2
        assert not slow.done()

        assert (await slow).json() == "by 1"
        assert (await client.get("one/7")).json() == "by 2"
        assert stored.leases("one:7") == []


async def test_who_takes_longer_than_the_lease_is_stored_when_they_are_first(cache_only: CacheSettings) -> None:
    computation = Computation(lease=0.1)
    computation.slowly = [0.3, 0.6]
    async with running(computation.router, cache_only) as client:
        first = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        second = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(2)
        assert (await first).json() == "by 1"
        assert (await client.get("one/7")).json() == "by 1"
        assert (await second).json() == "by 2"
        assert (await client.get("one/7")).json() == "by 1"


async def test_a_change_while_it_is_computed_lets_those_who_come_after_compute_anew(
    cache_only: CacheSettings, stored: Stored
) -> None:
    computation = Computation()
    computation.slowly = [0.3, 0.02]
    async with running(computation.router, cache_only) as client:
        early = [asyncio.create_task(client.get("one/7")) for _ in range(5)]
        await computation.until_begun(1)
        await asyncio.sleep(0.05)
        await client.delete("one/7")
        async with asyncio.timeout(0.2):
            late = await ask_at_once(client, 10)
        assert "by 1" not in {answer.json() for answer in late}
        await asyncio.gather(*early)
        assert b"by 1" not in b"".join(stored.values("one:7"))


async def test_many_resources_are_computed_side_by_side(cache_only: CacheSettings) -> None:
    computation = Computation()
    async with running(computation.router, cache_only) as client:
        started = perf_counter()
        answers = await asyncio.gather(*(client.get(f"one/{number % 50}") for number in range(200)))
        assert perf_counter() - started < 1
    assert computation.begun == 50
    assert len({answer.content for answer in answers}) == 50


async def test_everybody_is_served_while_the_server_goes_away(cache_only: CacheSettings, stored: Stored) -> None:
    computation = Computation()
    computation.slowly = [0.2, 0.02]
    async with running(computation.router, cache_only) as client:
        first = asyncio.create_task(client.get("one/7"))
        await computation.until_begun(1)
        waiting = [asyncio.create_task(client.get("one/7")) for _ in range(10)]
        await asyncio.sleep(0.03)
        stored.client.client_kill_filter(_type="normal", skipme=True)
        async with asyncio.timeout(1):
            answers = await asyncio.gather(first, *waiting)
    assert {answer.status_code for answer in answers} == {200}
