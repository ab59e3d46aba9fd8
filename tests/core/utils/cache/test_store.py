"""Stored answers and leases: who computes, who waits, and what may be stored after a change."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, cast

import pytest
from redis import Redis

from app.core.utils.cache import scripts, server_clock
from app.core.utils.cache import store as store_module
from app.core.utils.cache.server_clock import CLOCK_SLACK, ServerClock
from app.core.utils.cache.store import ANY_PATTERN, NOTES, Held, Lease, Store
from app.core.utils.redis_link import Link, LinkDown, Refused
from app.core.utils.redis_link import link as redis_link
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.core.utils.test_redis_link import (
    PATIENT,
    Client,
    FakeServer,
    hold_up,
    nothing_unseen,
    opened,
    stopped,
    takes,
    until,
    url_of,
)

pytestmark = pytest.mark.anyio

KEY = "thing:1"
VARIANT = b"\x00variant"


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


@pytest.fixture
def client(valkey: Valkey) -> Iterator[Client]:
    """Another connection to an empty server."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
async def store(valkey: Valkey, client: Client) -> AsyncIterator[Store]:
    async with opened(url_of(valkey)) as link:
        store = Store(link)
        await store.probe()
        await asyncio.sleep(2 * CLOCK_SLACK)  # The notes begin before any request of the test.
        yield store


@pytest.fixture
async def other(valkey: Valkey, client: Client) -> AsyncIterator[Store]:
    """The store of another process."""
    async with opened(url_of(valkey)) as link:
        yield Store(link)


async def take(store: Store, *, key: str = KEY, variant: bytes = VARIANT, seconds: float = 5) -> Lease:
    """A lease that is free to take."""
    taken = await store.take(key, variant, seconds)
    assert isinstance(taken, Lease), taken
    return taken


def calls(client: Client, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def fields(client: Client, key: str = KEY) -> dict[bytes, bytes]:
    return cast("dict[bytes, bytes]", client.hgetall(key))


class Listening:
    """What the server is told meanwhile: each command's words, also those of scripts."""

    def __init__(self, client: Client) -> None:
        self._monitor = client.monitor()
        self.commands: list[list[str]] = []
        self._client = client

    def __enter__(self) -> "Listening":
        self._monitor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.echo("the end")
        for line in self._monitor.listen():
            words = line["command"].split(" ")
            if words[0] == "ECHO":
                break
            if words[0] != "CLIENT":
                self.commands.append(words)
        self._monitor.__exit__(None, None, None)

    def position(self, *words: str) -> int:
        """Where the first command stands that begins with these words."""
        return next(at for at, command in enumerate(self.commands) if command[: len(words)] == list(words))


# ---- A lease ----


async def test_what_is_stored_under_a_lease_is_there_for_all(store: Store, other: Store) -> None:
    assert await store.get(KEY, VARIANT) is None
    lease = await take(store)
    assert await store.get(KEY, VARIANT) is None
    assert await store.store(lease, b"answer\0\xff", 60)
    assert await other.get(KEY, VARIANT) == b"answer\0\xff"
    assert await other.get(KEY, b"another variant") is None
    assert await other.take(KEY, VARIANT, 5) == b"answer\0\xff"


async def test_a_lease_is_for_one_and_others_hear_how_long(store: Store, other: Store) -> None:
    await take(store, seconds=5)
    held = await other.take(KEY, VARIANT, 5)
    assert isinstance(held, Held)
    assert 4 < held.seconds <= 5
    await take(other, variant=b"another variant")
    await take(other, key="thing:2")


async def test_of_many_who_take_at_once_one_has_the_lease(store: Store, other: Store) -> None:
    taken = await asyncio.gather(*((store, other)[number % 2].take(KEY, VARIANT, 5) for number in range(200)))
    assert Counter(type(one) for one in taken) == {Lease: 1, Held: 199}


async def test_a_lease_can_be_used_once(store: Store) -> None:
    lease = await take(store)
    assert await store.store(lease, b"first", 60)
    assert not await store.store(lease, b"second", 60)
    assert await store.get(KEY, VARIANT) == b"first"


async def test_a_lease_is_one_s_own_when_it_has_to_be_asked_for_twice(store: Store, client: Client) -> None:
    """Of the two scripts that are sent at once the server has lost the second, and so gets both again."""
    client.script_flush()
    await store.link.call(scripts.TAKE, "other:1", VARIANT, "token", 5000, 60_000, "", 1000)
    assert await store.store(await take(store), b"answer", 60)


async def test_a_change_voids_the_lease(store: Store, other: Store, client: Client) -> None:
    lease, another = await take(store), await take(store, variant=b"another variant")
    await other.void([KEY])
    for voided in (lease, another):
        assert not await store.store(voided, b"old", 60)
    assert fields(client) == {}


async def test_a_change_voids_the_lease_even_when_another_was_taken_since(store: Store, other: Store) -> None:
    lease = await take(store)
    await other.void([KEY])
    newer = await take(other)
    assert not await store.store(lease, b"old", 60)
    await store.give_up(lease)  # Which is not its own any more.
    assert await other.store(newer, b"new", 60)
    assert await store.get(KEY, VARIANT) == b"new"


async def test_a_lease_that_has_run_out_is_handed_on_and_the_first_to_store_wins(
    store: Store, other: Store, client: Client
) -> None:
    lease = await take(store, seconds=0.02)
    await asyncio.sleep(0.04)
    newer = await take(other)
    assert newer.token == lease.token
    assert isinstance(await store.take(KEY, VARIANT, 5), Held)
    assert await store.store(lease, b"late, and good", 60)
    assert not await other.store(newer, b"second", 60)
    assert await other.get(KEY, VARIANT) == b"late, and good"
    assert len(fields(client)) == 1


async def test_a_lease_that_is_given_up_is_free(store: Store, other: Store) -> None:
    lease = await take(store)
    await store.give_up(lease)
    assert not await store.store(lease, b"too late", 60)
    await take(other)


async def test_for_a_while_after_what_cannot_be_stored_nobody_needs_a_lease(
    store: Store, other: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "UNCOORDINATED", 0.2)
    lease = await take(store)
    await store.give_up(lease, uncoordinated=True)
    assert client.pttl(KEY) <= 200  # There is nothing else under it.
    with takes(0.12, at_most=0.5):
        for _ in range(10):
            assert await other.take(KEY, VARIANT, 5) is None
        while await other.take(KEY, VARIANT, 5) is None:  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.01)
    assert isinstance(await store.take(KEY, VARIANT, 5), Held)


async def test_after_what_cannot_be_stored_other_variants_are_as_before(store: Store) -> None:
    lease = await take(store, variant=b"another variant")
    assert await store.store(lease, b"answer", 60)
    await store.give_up(await take(store), uncoordinated=True)
    assert await store.take(KEY, b"another variant", 5) == b"answer"
    await take(store, variant=b"a third")


async def test_an_answer_that_will_not_do_is_replaced(store: Store, other: Store, client: Client) -> None:
    await store.store(await take(store), b"expired", 60)
    lease = await store.take(KEY, VARIANT, 5, b"expired")
    assert isinstance(lease, Lease)
    assert await store.get(KEY, VARIANT) == b"expired"  # Still served, where it may be.
    assert isinstance(await other.take(KEY, VARIANT, 5, b"expired"), Held)
    assert await other.take(KEY, VARIANT, 5, b"something else") == b"expired"
    assert await store.store(lease, b"fresh", 60)
    assert await other.take(KEY, VARIANT, 5, b"expired") == b"fresh"
    assert len(fields(client)) == 1


@pytest.mark.parametrize("command", [["SET", KEY, "text"], ["RPUSH", KEY, "list"], ["ZADD", KEY, "1", "set"]])
async def test_what_is_no_hash_is_replaced(store: Store, client: Client, command: list[str]) -> None:
    client.execute_command(*command)
    assert await store.get(KEY, VARIANT) is None
    assert await store.store(await take(store), b"answer", 60)
    assert await store.get(KEY, VARIANT) == b"answer"


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_done_every_key_expires(store: Store, client: Client, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- no secret
    keys, leases = [f"thing:{number}" for number in range(3)], list[Lease]()
    for _ in range(150):
        key, variant = chance.choice(keys), b"%d" % chance.randrange(3)
        operation = chance.randrange(7)
        if operation < 3:
            unwanted = await store.get(key, variant) if chance.random() < 0.7 else None
            taken = await store.take(key, variant, chance.choice([0.001, 5]), unwanted)
            leases += [taken] if isinstance(taken, Lease) else []
        elif operation == 3:
            await store.void([key], ["thing:*"] if chance.random() < 0.2 else [])
        elif operation == 4 and chance.random() < 0.2:
            client.delete(key)
            client.hset(key, "vsomebody's", "own")  # Without an expiry: the next to take sees to it.
            await take(store, key=key, variant=b"first")
        elif leases:
            lease = leases.pop(chance.randrange(len(leases)))
            if operation == 5:
                await store.give_up(lease, uncoordinated=chance.random() < 0.5)
            else:
                await store.store(lease, b"answer", chance.choice([1, 100]))
        present = client.keys()
        assert all(0 < client.pttl(name) <= 100_000 for name in present if client.exists(name)), present


async def test_what_is_stored_is_kept_as_long_as_any_of_its_variants(store: Store, client: Client) -> None:
    await store.store(await take(store), b"long", 1000)
    await store.store(await take(store, variant=b"another variant"), b"short", 1)
    assert client.pttl(KEY) > 990_000


async def test_a_resource_has_so_many_variants_and_no_more(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MOST_FIELDS", 20)
    for number in range(60):
        lease = await take(store, variant=b"%d" % number)
        if number % 3:
            await store.store(lease, b"answer", 60)
        assert client.hlen(KEY) <= 20
    assert client.hlen(KEY) == 20
    assert store.link.up


# ---- Waiting ----


async def test_all_who_wait_in_a_process_are_one_caller(store: Store, other: Store, client: Client) -> None:
    lease = await take(other)
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(500)]
    await asyncio.sleep(0.05)
    client.config_resetstat()
    await asyncio.sleep(0.25)
    asked = calls(client, "evalsha")
    assert 4 <= asked < 60  # Two scripts each 2 to 50 ms, whoever waits.
    await other.store(lease, b"answer", 60)
    with takes():
        assert set(await asyncio.gather(*waiting)) == {b"answer"}


async def test_who_waits_for_their_own_process_is_told_at_once(store: Store, told_only: None) -> None:
    lease = await take(store)
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(5)]
    await asyncio.sleep(0.01)
    await store.store(lease, b"answer", 60)
    with takes():
        assert await asyncio.gather(*waiting) == [b"answer"] * 5


async def test_who_waits_takes_over_one_after_the_other(store: Store, other: Store) -> None:
    """Whoever has the lease gives it up, again and again: a caller who leaves, say."""
    lease = await take(other)
    waiting = {asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(5)}
    await asyncio.sleep(0.01)
    await other.give_up(lease)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=2)
        (one,) = done  # Only one at a time.
        lease_of_one = one.result()
        assert isinstance(lease_of_one, Lease)
        await store.give_up(lease_of_one)


async def test_a_lease_that_runs_out_is_passed_to_one_of_those_who_wait(store: Store, other: Store) -> None:
    lease = await take(other, seconds=0.05)
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(10)]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=2)
    (one,) = done
    passed = one.result()
    assert isinstance(passed, Lease)
    assert passed.token == lease.token
    await store.store(passed, b"answer", 60)
    assert set(await asyncio.gather(*rest)) == {b"answer"}


async def test_who_waits_is_told_when_there_is_nothing_to_wait_for(store: Store, other: Store) -> None:
    lease = await take(other)
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(5)]
    await asyncio.sleep(0.01)
    await other.give_up(lease, uncoordinated=True)
    with takes():
        assert await asyncio.gather(*waiting) == [None] * 5


async def test_who_comes_while_it_is_asked_gets_the_next_answer(store: Store, client: Client) -> None:
    """The one that is on its way can be from before a change that they know of."""
    lease = await take(store)
    early = asyncio.create_task(store.wait(KEY, VARIANT, 5))
    asked = asyncio.Event()
    late: list[asyncio.Task[bytes | Lease | None]] = []
    take_itself = store.take

    async def take_and_tell(*words: Any) -> Any:
        found = await take_itself(*words)
        if isinstance(found, bytes) and not asked.is_set():
            asked.set()
            client.hset(KEY, b"v" + VARIANT, b"changed meanwhile")
            late.append(asyncio.create_task(store.wait(KEY, VARIANT, 5)))
            await asyncio.sleep(0)
        return found

    store.take = take_and_tell  # type: ignore[assignment,method-assign]
    await store.store(lease, b"answer", 60)
    assert await early == b"answer"
    assert await late[0] == b"changed meanwhile"


async def test_who_waits_for_different_things_gets_different_things(store: Store, other: Store) -> None:
    leases = {key: await take(other, key=key) for key in ("thing:1", "thing:2")}
    waiting = [asyncio.create_task(store.wait(key, VARIANT, 5)) for key in leases]
    waiting.append(asyncio.create_task(store.wait("thing:1", VARIANT, 5, b"one")))
    for key, value in (("thing:2", b"two"), ("thing:1", b"one")):
        await other.store(leases[key], value, 60)
    *values, lease = await asyncio.gather(*waiting)
    assert values == [b"one", b"two"]
    assert isinstance(lease, Lease)


async def test_who_waits_when_the_server_hangs_waits_no_longer(valkey: Valkey, client: Client) -> None:
    async with opened(url_of(valkey), redis_link.ANSWER_TIMEOUT) as link, opened(url_of(valkey)) as another:
        store = Store(link)
        await take(Store(another))
        waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(100)]
        await asyncio.sleep(0.02)
        with stopped(client), takes(at_most=0.3):
            assert await asyncio.gather(*waiting) == [None] * 100
            assert await store.wait(KEY, VARIANT, 5) is None
        await until(lambda: link.up)
        assert await link.send("PING") == b"PONG"


async def test_who_leaves_while_they_wait_harms_nobody(store: Store, other: Store) -> None:
    lease = await take(other)
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5)) for _ in range(100)]
    for turn in range(3):
        await asyncio.sleep(0.01)
        for task in waiting[turn::4]:
            task.cancel()
    await other.store(lease, b"answer", 60)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert set(outcomes[3::4]) == {b"answer"}
    assert all(isinstance(outcome, asyncio.CancelledError) for turn in range(3) for outcome in outcomes[turn::4])


async def test_who_leaves_with_a_lease_gives_it_back(store: Store, other: Store) -> None:
    """They are cancelled in the turn in which they are given it."""
    await take(other, seconds=0.01)
    waiting = asyncio.create_task(store.wait(KEY, VARIANT, 5))
    leases: list[Lease] = []
    take_itself = store.take

    async def take_and_part(*words: Any) -> Any:
        found = await take_itself(*words)
        if isinstance(found, Lease):
            leases.append(found)
            asyncio.get_running_loop().call_soon(waiting.cancel)
        return found

    store.take = take_and_part  # type: ignore[assignment,method-assign]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.05)
    assert len(leases) == 1
    await take(other)


async def test_when_the_last_who_waits_leaves_while_it_is_asked_the_lease_is_given_back(
    store: Store, other: Store
) -> None:
    await take(other, seconds=0.01)
    waiting = asyncio.create_task(store.wait(KEY, VARIANT, 5))
    take_itself = store.take

    async def take_and_leave(*words: Any) -> Any:
        found = await take_itself(*words)
        if isinstance(found, Lease):
            waiting.cancel()
            await asyncio.sleep(0)
        return found

    store.take = take_and_leave  # type: ignore[assignment,method-assign]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.05)
    await take(other)


async def test_a_lease_is_kept_by_who_waited_for_it_while_handling_an_error(store: Store, other: Store) -> None:
    await take(other, seconds=0.01)
    try:
        raise LookupError
    except LookupError:
        lease = await store.wait(KEY, VARIANT, 5)
    await asyncio.sleep(0.05)
    assert isinstance(lease, Lease)
    assert await store.store(lease, b"answer", 60)


async def test_a_wait_ends(store: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LONGEST_COMPUTATION", 0.1)
    await other.link.send("HSET", KEY, b"l" + VARIANT, "somebody:9999999999999")
    with takes(0.09, at_most=0.4):
        assert await store.wait(KEY, VARIANT, 5) is None
    await asyncio.sleep(0.1)
    assert store._waiting == {}


# ---- Invalidation ----


async def test_many_keys_are_dropped(store: Store, client: Client) -> None:
    keys = [f"thing:{number}" for number in range(2000)]
    with client.pipeline() as pipeline:
        for key in [*keys, "other:1"]:
            pipeline.hset(key, "v", "old")
        pipeline.execute()
    await store.void(keys)
    assert set(client.keys()) == {b"other:1", NOTES.encode()}
    assert client.zcard(NOTES) == 2000 + 1  # and when they began


async def test_a_pattern_drops_the_hashes_that_match_and_nothing_else(store: Store, client: Client) -> None:
    with client.pipeline() as pipeline:
        for number in range(1500):
            pipeline.hset(f"ann_posts:{number}", "v", "old")
        for key in ("bob_posts:1", "ann_posts", "xann_posts:1"):
            pipeline.hset(key, "v", "good")
        pipeline.set("ann_posts:text", "good")
        pipeline.execute()
    lease = await take(store, key="ann_posts:page", variant=b"x")
    await store.void([], ["ann_posts:*"])
    kept = {b"bob_posts:1", b"ann_posts", b"xann_posts:1", b"ann_posts:text", NOTES.encode()}
    assert set(client.keys()) == kept
    assert not await store.store(lease, b"old", 60)
    assert set(client.zrange(NOTES, 0, -1)) == {ANY_PATTERN.encode(), b"born"}


async def test_nothing_to_drop_is_no_command(store: Store, client: Client) -> None:
    with Listening(client) as listening:
        await store.void([], [])
    assert listening.commands == []


@pytest.mark.parametrize("flushed", [False, True])
async def test_the_note_of_a_change_comes_before_the_drop(store: Store, client: Client, flushed: bool) -> None:
    """Else who has read before the change could take the lease in between, and store."""
    await store.void(["other:1"])
    if flushed:
        client.script_flush()  # As after a restart of the server.
    with Listening(client) as listening:
        await store.void([KEY])
    note = listening.position("ZADD", NOTES)
    assert any(words[:2] == ["UNLINK", KEY] and at > note for at, words in enumerate(listening.commands))


@pytest.mark.parametrize("flushed", [False, True])
async def test_the_notes_are_read_after_the_lease_is_taken(store: Store, client: Client, flushed: bool) -> None:
    """Else a change in between would neither void the lease nor be noticed."""
    await take(store, key="other:1")
    if flushed:
        client.script_flush()
        await store.link.call(scripts.LAST, NOTES)  # Which the server knows again, then, and nothing else.
    with Listening(client) as listening:
        await take(store)
    lease = listening.position("HSET", KEY)
    assert any(words[:2] == ["ZSCORE", NOTES] and at > lease for at, words in enumerate(listening.commands))


async def test_notes_are_kept_for_a_while(store: Store, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RECENTLY", 1)
    now = time.time() * 1e6
    client.zadd(NOTES, {"thing:old": now - 2e6, "thing:recent": now - 0.5e6, "born": now - 3e6})
    await store.void([KEY])
    assert set(client.zrange(NOTES, 0, -1)) == {b"thing:recent", KEY.encode(), b"born"}
    assert client.zscore(NOTES, "born") == pytest.approx(now - 3e6, abs=1)
    assert 0 < client.pttl(NOTES) <= 1000


# ---- Which requests may store ----


async def started_at(moment: float, store: Store, key: str = KEY) -> bool:
    """Whether a request that started then, and takes the lease now, may store its answer."""
    lease = await take(store, key=key)
    await store.give_up(lease)
    return store.covers(lease, moment)


async def test_who_began_before_a_change_does_not_store(store: Store, other: Store) -> None:
    before = perf_counter()
    assert await started_at(before, store)
    await asyncio.sleep(0.002)
    await other.void([KEY])
    await asyncio.sleep(0.005)
    assert not await started_at(before, store)
    assert await started_at(perf_counter() - 0.001, store)
    assert await started_at(before, store, "thing:2")


async def test_who_began_before_the_notes_does_not_store(store: Store, client: Client) -> None:
    """They are evicted from a full server, or flushed with everything else: what they said is not known."""
    before = perf_counter()
    assert await started_at(before, store)
    client.delete(NOTES)
    assert not await started_at(perf_counter(), store)
    await store.probe()
    await asyncio.sleep(0.01)
    assert not await started_at(before, store)
    assert await started_at(perf_counter(), store)


async def test_who_began_before_any_pattern_was_dropped_does_not_store(store: Store, other: Store) -> None:
    before = perf_counter()
    await other.void([], ["another:*"])
    await asyncio.sleep(0.005)
    assert not await started_at(before, store)
    assert await started_at(perf_counter(), store)


@pytest.mark.parametrize("held_up", [False, True])
async def test_who_began_shortly_after_a_change_stores(store: Store, other: Store, held_up: bool) -> None:
    """Also when the answer with the server's time lay unread for long."""
    await store.probe()
    before = perf_counter()
    await other.void([KEY])
    await asyncio.sleep(0.006)
    started = perf_counter()
    taking = asyncio.ensure_future(store.take(KEY, VARIANT, 5))
    for _ in range(3):
        await asyncio.sleep(0)  # It is sent by now.
    if held_up:
        hold_up(0.1)
    lease = await taking
    assert isinstance(lease, Lease)
    assert lease.invalidated > 0
    assert store.covers(lease, started)
    assert not store.covers(lease, before)


async def test_who_began_longer_ago_than_changes_are_noted_does_not_store(store: Store) -> None:
    assert not await started_at(perf_counter() - store_module.RECENTLY - 0.1, store)


async def test_after_an_outage_the_clock_is_another(store: Store) -> None:
    lease = await take(store)
    started = perf_counter()
    assert store.covers(lease, started)
    await store.link.close()
    assert not store.covers(lease, started)


async def test_what_a_server_s_clock_says_is_never_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ahead by 1,000 s; an answer is under way for up to half a second."""
    now = 0.0
    monkeypatch.setattr(server_clock, "perf_counter", lambda: now)
    clock = ServerClock()
    assert clock.at_least(0.0) < 0
    chance = random.Random(1)  # noqa: S311 -- no secret
    best = 0.0
    for _ in range(2000):
        now += chance.uniform(0, 0.02)
        delay = chance.choice([0.0001, 0.01, 0.5])
        clock.learn(int((1000 + now - delay) * 1_000_000))
        best = max(best, 1000 - delay)
        assert clock.at_least(now) <= 1000 + now
        assert clock.at_least(now) >= best + now - CLOCK_SLACK - 0.000_01 or now > server_clock.CLOCK_SECONDS
        assert clock.at_least(now - 3) == pytest.approx(clock.at_least(now) - 3)


async def test_a_good_answer_counts_for_a_while_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(server_clock, "perf_counter", lambda: now)
    clock = ServerClock()
    clock.learn(200_000_000)
    now = 100.8
    clock.learn(200_400_000)  # 0.4 seconds late.
    assert clock.at_least(now) == pytest.approx(200.8 - CLOCK_SLACK)
    now = 101.2
    clock.learn(200_800_000)
    assert clock.at_least(now) == pytest.approx(201.2 - CLOCK_SLACK)  # Of the second before.
    now = 103.5
    clock.learn(203_100_000)
    assert clock.at_least(now) == pytest.approx(203.1 - CLOCK_SLACK)  # Clocks may part.
    now = 103.6
    clock.learn(201_700_000)  # So late is no answer: the clock was set back.
    assert clock.at_least(now) == pytest.approx(201.7 - CLOCK_SLACK)
    clock.forget()
    assert clock.at_least(now) < 0


@pytest.fixture
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has those who wait ask when something has happened in their own process, and at no other time."""
    monkeypatch.setattr(store_module, "FIRST_POLL", 2.0)
    monkeypatch.setattr(store_module, "LONGEST_POLL", 2.0)


async def test_what_must_not_be_stored_is_still_for_those_who_began_before(
    store: Store, other: Store, told_only: None
) -> None:
    lease = await take(store)
    started = perf_counter()
    older = asyncio.create_task(store.wait(KEY, VARIANT, 5, started=started - 0.1))
    newer = asyncio.create_task(store.wait(KEY, VARIANT, 5, started=started + 0.1))
    await asyncio.sleep(0.01)
    await store.share(lease, b"answer", started)
    assert await older == b"answer"
    assert isinstance(await newer, Lease)
    assert await other.get(KEY, VARIANT) is None


async def test_it_is_for_those_too_for_whom_it_is_being_asked(store: Store, told_only: None) -> None:
    lease = await take(store)
    started = perf_counter()
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5, started=started - 0.1)) for _ in range(3)]
    await asyncio.sleep(0.01)
    take_itself, asked, go_on = store.take, asyncio.Event(), asyncio.Event()

    async def take_and_hold(*words: Any) -> Any:
        found = await take_itself(*words)
        asked.set()
        await go_on.wait()
        return found

    store.take = take_and_hold  # type: ignore[assignment,method-assign]
    store._wake(lease)
    await until(asked.is_set)
    await store.share(lease, b"answer", started)
    go_on.set()
    done, rest = await asyncio.wait(waiting, timeout=0.5)
    for task in rest:
        task.cancel()
    assert [task.result() for task in done] == [b"answer"] * 3


async def test_of_those_who_wait_the_one_that_began_last_computes(store: Store, told_only: None) -> None:
    """Whether its answer may be stored or not, it is good enough for all others."""
    lease = await take(store)
    now = perf_counter()
    waiting = [asyncio.create_task(store.wait(KEY, VARIANT, 5, started=now + at)) for at in (0.1, 0.3, 0.2)]
    await asyncio.sleep(0.01)
    await store.give_up(lease)
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=2)
    assert done == {waiting[1]}
    await store.share(cast("Lease", waiting[1].result()), b"answer", now + 0.3)
    assert set(await asyncio.gather(*rest)) == {b"answer"}


# ---- A server that is not well ----


async def test_a_full_server_still_drops_and_refuses_the_rest() -> None:
    with (
        scratch_folder() as folder,
        Valkey(folder / "valkey", port=free_port(), durable=False) as valkey,
        Redis(host="127.0.0.1", port=valkey.port) as client,
    ):
        async with opened(url_of(valkey)) as link:
            store = Store(link)
            lease = await take(store)
            unstored = await take(store, variant=b"another variant")
            await store.store(lease, b"answer", 60)
            client.config_set("maxmemory", 1)
            assert await store.get(KEY, VARIANT) == b"answer"
            assert await store.take(KEY, VARIANT, 5) == b"answer"
            with pytest.raises(Refused, match="OOM"):
                await store.take("thing:2", VARIANT, 5)
            await store.give_up(unstored)
            await store.void([KEY, "thing:2"], ["other:*"])
            assert client.keys() == [NOTES.encode()]
            assert set(client.zrange(NOTES, 0, -1)) == {KEY.encode(), b"thing:2", ANY_PATTERN.encode(), b"born"}
            assert await store.wait("thing:2", VARIANT, 5) is None
            client.config_set("maxmemory", 0)
            assert await store.store(await take(store), b"answer", 60)


async def test_whatever_is_asked_while_the_server_is_away_is_an_outage() -> None:
    async with opened(f"redis://127.0.0.1:{free_port()}/0") as link:
        store = Store(link)
        lease = Lease(KEY, VARIANT, b"token", 0)
        asked: Sequence[Awaitable[object]] = [
            store.get(KEY, VARIANT),
            store.take(KEY, VARIANT, 5),
            store.store(lease, b"answer", 60),
            store.give_up(lease),
            store.void([KEY]),
            store.void([], ["thing:*"]),
            store.probe(),
        ]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {LinkDown}
        assert await store.wait(KEY, VARIANT, 5) is None
        store.give_back(lease)
        await asyncio.sleep(0.01)


async def test_a_server_that_goes_away_amid_anything_leaves_nothing_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PAUSE", 0.03)
    async with FakeServer() as server, opened(server.url, PATIENT) as link:
        server.muted = True
        store = Store(link)
        lease = Lease(KEY, VARIANT, b"token", 0)
        tasks = [
            asyncio.ensure_future(store.take(KEY, VARIANT, 5)),
            asyncio.ensure_future(store.store(lease, b"answer", 60)),
            asyncio.ensure_future(store.void([f"thing:{number}" for number in range(600)], ["other:*"])),
            asyncio.ensure_future(store.wait(KEY, VARIANT, 5)),
            asyncio.ensure_future(store.get(KEY, VARIANT)),
        ]
        store.give_back(lease)
        await asyncio.sleep(0.02)
        tasks[-1].cancel()
        server.reset()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[:3]] == [LinkDown] * 3
        assert outcomes[3] is None
        with suppress(asyncio.CancelledError):
            await tasks[-1]


async def test_a_store_forgets_who_waited(store: Store, other: Store) -> None:
    for number in range(20):
        lease = await take(other, key=f"thing:{number}")
        waiting = asyncio.create_task(store.wait(f"thing:{number}", VARIANT, 5))
        await asyncio.sleep(0)
        await other.store(lease, b"answer", 60)
        assert await waiting == b"answer"
    await until(lambda: not store._waiting and not store._tasks)


async def test_the_link_is_what_the_store_was_given() -> None:
    link = Link("redis://127.0.0.1:1/0", "test")
    assert Store(link).link is link
