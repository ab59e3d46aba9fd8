"""The last hour of several processes, in a real Valkey: what is added where, what an outage costs, and reading it."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from app.core.metrics.recent.clock import MinuteClock
from app.core.metrics.recent.hour import CacheCounts, LimitCounts
from app.core.metrics.recent.keys import BUSIEST_KEPT, KEPT, MINUTES, routes_key, totals_key
from app.core.metrics.recent.reading import Recent
from app.core.metrics.recent.sampling import MOST_PREFIXES, MOST_ROUTES
from app.core.utils.redis_link import AnyLink, Command, LinkError, link_to
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.core.metrics.conftest import Client, Process, keys_of, read
from tests.core.utils.test_redis_cluster import wait_for_answers
from tests.core.utils.test_redis_link import nothing_unseen, until
from tests.redis_topologies import RedisCluster

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


def calls_of(plain: Client) -> dict[str, int]:
    """How often each command was called, but for those of this look."""
    stats = plain.info("commandstats")
    return {name: found["calls"] for name, found in stats.items() if name not in {"cmdstat_info", "cmdstat_scan"}}


# ---- Adding and reading ----


async def test_what_processes_count_is_added_up(link: AnyLink) -> None:
    first, second = Process(link), Process(link)
    first.ask(times=3)
    first.ask("/other", status=500, seconds=0.2)
    second.ask(times=2, seconds=0.3)
    second.ask("none", status=404)
    for process in (first, second):
        process.metrics.cache.labels("tier", "hit").inc(4)
        process.metrics.limits.labels("*", "refused", "redis").inc()
        await process.look()
    second.metrics.cache.labels("tier", "miss").inc()
    await asyncio.gather(first.look(), second.look())
    hour = await read(link).last_hour()
    assert len(hour.minutes) == MINUTES
    starts = [minute.start.timestamp() for minute in hour.minutes]
    assert starts == [starts[0] + 60 * number for number in range(MINUTES)]
    assert hour.minutes[0].requests == 0
    total = hour.last()
    assert (total.requests, total.errors, total.unrouted) == (6, 1, 1)
    assert total.seconds == pytest.approx(3 * 0.003 + 0.2 + 2 * 0.3)
    assert total.buckets == {0.005: 3, 0.25: 1, 0.5: 2}
    assert total.p50 == pytest.approx(0.005)
    assert total.caches == {"tier": CacheCounts(hits=8, misses=1)}
    assert total.limits == {"*": LimitCounts(refused=2)}


async def test_the_hour_is_one_round_trip(link: AnyLink) -> None:
    process = Process(link)
    process.ask()
    await process.look()
    recent = read(link)
    await recent.last_hour()  # It has sent its script.
    asked: list[int] = []
    run: Any = link.run

    async def counting(*commands: Command) -> list[Any]:
        asked.append(len(commands))
        return list(await run(*commands))

    link.run = counting  # type: ignore[method-assign]
    assert (await recent.last_hour()).last().requests == 1
    assert asked == [1 + MINUTES]


async def test_an_idle_process_sends_nothing(link: AnyLink, plain: Client) -> None:
    process = Process(link)
    await process.look()
    assert keys_of(plain) == []
    process.ask()
    process.subjects.note("default:*", "user:1", refused=False)
    await process.look()
    before = calls_of(plain)
    assert before["cmdstat_hincrby"] > 0
    for _ in range(5):
        await process.look()
    assert calls_of(plain) == before


async def test_minutes_roll_over_and_leave(link: AnyLink, plain: Client) -> None:
    process = Process(link)
    for ahead, requests in ((-MINUTES, 64), (2 - MINUTES, 32), (-2, 16), (-1, 8), (0, 4)):
        process.clock.ahead = ahead
        process.ask(times=requests)
        await process.look()
    found = [minute.requests for minute in (await read(link).last_hour()).minutes]
    assert found == [0, 32, *[0] * (MINUTES - 5), 16, 8, 4]
    for key in keys_of(plain):
        assert 0 < plain.ttl(key) <= KEPT


async def test_reading_goes_by_the_servers_clock(link: AnyLink) -> None:
    process = Process(link)
    process.ask()
    await process.look()
    wrong = MinuteClock(wall=lambda: time.time() + 86_400)
    assert (await Recent(link, wrong).last_hour()).last().requests == 1
    assert wrong.minute() == MinuteClock().minute()


async def test_recording_goes_by_the_servers_clock(link: AnyLink) -> None:
    process = Process(link)
    process.clock._ahead += 86_400
    await process.recorder.open()
    process.ask()
    await process.recorder.close()
    assert (await read(link).last_hour()).last().requests == 1


async def test_it_looks_by_itself_and_once_more_when_it_ends(link: AnyLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.metrics.recent.recorder.EVERY", 0.02)
    process, recent = Process(link), read(link)
    process.ask(times=50)  # Before it began, so that it is not counted.
    await process.recorder.open()
    process.ask()
    async with asyncio.timeout(5):
        while not (await recent.last_hour()).last().requests:  # noqa: ASYNC110 -- it is looked at by a clock
            await asyncio.sleep(0.01)
    monkeypatch.setattr("app.core.metrics.recent.recorder.EVERY", 1000)
    await asyncio.sleep(0.1)
    process.ask(times=2)
    await process.recorder.close()
    assert (await recent.last_hour()).last().requests == 3


async def test_routes(link: AnyLink) -> None:
    first, second = Process(link), Process(link)
    first.ask("/a", times=3, seconds=0.5)
    first.ask("/b", status=503)
    second.ask("/a", status=500, seconds=0.5)
    await first.look()
    second.clock.ahead = -1
    await second.look()
    second.clock.ahead = -20
    second.ask("/old")
    await second.look()
    one, other = await read(link).routes()
    assert (one.route, one.requests, one.errors) == ("/a", 4, 1)
    assert one.seconds == pytest.approx(2.0)
    assert one.mean == pytest.approx(0.5)
    assert (other.route, other.requests, other.errors) == ("/b", 1, 1)
    assert {route.route for route in await read(link).routes(MINUTES)} == {"/a", "/b", "/old"}


async def test_fields_do_not_explode(link: AnyLink, plain: Client) -> None:
    process = Process(link)
    for number in range(2000):
        process.ask(f"/{number}", status=500)
        process.metrics.cache.labels(f"prefix{number}", "hit").inc()
    await process.look()
    (minute,) = {int(key.rpartition(":")[2]) for key in keys_of(plain) if ":routes:" in key}
    assert plain.hlen(routes_key(minute)) == 3 * (MOST_ROUTES + 1)
    assert plain.hlen(totals_key(minute)) < 10 + MOST_PREFIXES
    total = (await read(link).last_hour()).last()
    assert total.requests == total.errors == total.cache.hits == 2000


async def test_whatever_goes_wrong_the_next_look_may_go_better(link: AnyLink, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(link)
    with capture_logs() as logs, monkeypatch.context() as broken:
        broken.setattr(process.metrics.cache, "_metrics", None)
        for _ in range(3):
            await process.look()
    assert [entry["event"] for entry in logs] == ["last hour cannot be recorded"]
    process.ask()
    await process.look()
    assert (await read(link).last_hour()).last().requests == 1


# ---- Outages ----


async def test_what_an_outage_held_up_is_added_to_its_own_minutes(patient: None) -> None:
    port = free_port()
    link = link_to(f"redis://127.0.0.1:{port}", "test")
    await link.open()
    process, recent = Process(link), read(link)
    try:
        with capture_logs() as logs:
            for ahead, requests in ((-70, 100), (-3, 1), (-3, 1), (-2, 3), (0, 5)):
                process.clock.ahead = ahead
                process.ask(times=requests)
                process.subjects.note("default:*", "user:1", refused=False)
                await process.look()
        assert [entry for entry in logs if "last hour" in entry["event"]] == []  # The link has said it.
        for question in (recent.last_hour, recent.routes, lambda: recent.busiest(None, "*")):
            with pytest.raises(LinkError):
                await question()
        with scratch_folder() as folder, Valkey(folder / "valkey", port=port, durable=False):
            await until(lambda: link.up)
            await process.look()
            found = [minute.requests for minute in (await recent.last_hour()).minutes]
            assert found[-4:] == [2, 3, 0, 5]
            assert sum(found) == 10
            assert await recent.busiest(None, "*") == []
            process.subjects.note("default:*", "user:2", refused=False)
            await process.look()
            assert [one.subject for one in await recent.busiest(None, "*")] == ["user:2"]
    finally:
        await link.close()


async def test_what_is_kept_has_an_end(patient: None) -> None:
    link = link_to(f"redis://127.0.0.1:{free_port()}", "test")
    await link.open()
    process = Process(link)
    try:
        for minute in range(-300, 1):
            process.clock.ahead = minute
            for _ in range(3):
                process.ask(times=1)
                await process.look()
        batches = process.recorder._batches
        assert len(batches) == MINUTES
        assert {batch.change.totals["requests"] for batch in batches} == {3}
        for turn in range(1000):  # A clock that is set to and fro makes one of each look.
            process.clock.ahead = turn % 2
            process.ask()
            await process.look()
        assert len(batches) == 2 * MINUTES
    finally:
        await link.close()


async def test_what_a_silent_server_may_have_got_is_added_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It hangs for a moment: nobody can tell whether what it was sent is done. It is sent again."""
    with scratch_folder() as folder, Valkey(folder / "valkey", port=free_port(), durable=False) as server:
        wait_for_answers(monkeypatch, 0.5)
        link = link_to(f"redis://127.0.0.1:{server.port}", "test")
        await link.open()
        process, recent = Process(link), read(link)
        process.ask()
        await process.look()
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            process.ask(times=10)
            with capture_logs() as logs:
                await process.look()
                process.ask(times=100)
                await process.look()
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert len([entry for entry in logs if entry["event"] == "last hour cannot be recorded"]) == 1
        await until(lambda: link.up)
        assert (await recent.last_hour()).last().requests == 11  # It was done when the server went on.
        with Redis(host="127.0.0.1", port=server.port) as plain:
            sent = calls_of(plain)["cmdstat_evalsha"]
            await process.look()
            assert calls_of(plain)["cmdstat_evalsha"] == sent + 2  # the ten once more, and the hundred
        assert (await recent.last_hour()).last().requests == 111
        await link.close()


async def test_a_server_that_starts_anew_goes_on_with_what_comes(patient: None) -> None:
    port = free_port()
    with scratch_folder() as folder:
        link = link_to(f"redis://127.0.0.1:{port}", "test")
        with Valkey(folder / "one", port=port, durable=False):
            await link.open()
            process, recent = Process(link), read(link)
            process.ask(times=7)
            await process.look()
        await until(lambda: not link.up)
        process.ask(times=2)
        await process.look()
        with Valkey(folder / "two", port=port, durable=False):  # It has nothing of the first, nor the scripts.
            await until(lambda: link.up)
            await process.look()
            assert (await recent.last_hour()).last().requests == 2
            process.ask()
            await process.look()
            assert (await recent.last_hour()).last().requests == 3
        await link.close()


async def test_a_full_server_gets_it_later(link: AnyLink, plain: Client) -> None:
    process, recent = Process(link), read(link)
    process.ask()
    await process.look()
    plain.config_set("maxmemory", 1)
    try:
        process.ask(times=5)
        with capture_logs() as logs:
            await process.look()
            await process.look()
        assert [entry["log_level"] for entry in logs] == ["warning"]
        assert "OOM" in logs[0]["why"]
        assert (await recent.last_hour()).last().requests == 1  # To read, there is no need of memory.
        assert await recent.busiest(None, "*") == []
    finally:
        plain.config_set("maxmemory", 0)
    await process.look()
    assert (await recent.last_hour()).last().requests == 6


async def test_in_a_cluster(nodes: RedisCluster, patient: None) -> None:
    link = link_to(nodes.url(), "test")
    await link.open()
    try:
        first, second, recent = Process(link), Process(link), read(link)
        for process in (first, second):
            process.ask("/user/{name}", times=3)
            for _ in range(4):
                process.subjects.note("5:/user/{name}", "user:1", refused=True)
            await process.look()
        second.clock.ahead = -1
        second.ask()
        await second.look()
        assert (await recent.last_hour()).last().requests == 7
        assert [route.requests for route in await recent.routes()] == [6, 1]
        assert await recent.busiest(5, "/user/{name}/") == [("user:1", 8, 8)]
        where = [len(keys_of(node.client)) for node in nodes.primaries]
        assert sorted(where)[:2] == [0, 0]
        holder = nodes.primaries[where.index(max(where))]
        assert max(holder.client.ttl(key) for key in keys_of(holder.client)) <= KEPT
        assert max(holder.client.ttl(key) for key in keys_of(holder.client) if ":busiest:" in key) <= BUSIEST_KEPT
    finally:
        await link.close()
