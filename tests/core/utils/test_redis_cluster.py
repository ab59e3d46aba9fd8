"""A link to a real cluster: who has which key, while slots move, primaries fail, and all of it is away."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.core.utils.redis_link import ClusterLink, Link, LinkDown, LinkError, Refused, Script
from app.core.utils.redis_link import cluster as cluster_link
from app.core.utils.redis_link import link as redis_link
from app.core.utils.redis_link import nodes as cluster_nodes
from scripts.embedded import Valkey, free_port
from tests.core.utils.test_redis_link import SECRET, FakeServer, bulk, nothing_unseen, takes, until
from tests.event_loops import anyio_backend  # noqa: F401 -- a fixture
from tests.redis_topologies import Node, RedisCluster, patiently

pytestmark = pytest.mark.anyio

COUNT = Script("return redis.call('INCR', KEYS[1])")
COUNT_THE_FIRST = Script("redis.call('EXISTS', KEYS[2]) return redis.call('INCR', KEYS[1])")
PROMPT = 0.6  # seconds; a busy machine takes most of it
SOON = 15.0  # seconds; a failover takes about two
SUBJECTS = [f"rate:{{user:{number}}}:log" for number in range(60)]


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


def wait_for_answers(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(Link.__init__, "__kwdefaults__", {"answer_timeout": seconds})


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that is not about a server that hangs."""
    wait_for_answers(monkeypatch, 5.0)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[ClusterLink]:
    """A link, while it is open."""
    link = ClusterLink(url, "test")
    await link.open()
    try:
        yield link
    finally:
        await link.close()


async def outcome(link: ClusterLink, key: str, script: Script = COUNT) -> Any:
    """What a call returns, or how it fails."""
    try:
        return await link.call(script, key)
    except LinkError as error:
        return error


async def answers(link: ClusterLink, keys: Iterable[str] = SUBJECTS) -> bool:
    """Whether it does so for each key."""
    outcomes = await asyncio.gather(*(outcome(link, key) for key in keys))
    return not any(isinstance(outcome, LinkError) for outcome in outcomes)


async def until_it_answers(link: ClusterLink, keys: Iterable[str] = SUBJECTS) -> None:
    async with asyncio.timeout(SOON):
        while not await answers(link, keys):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.05)


class Counting:
    """Callers who count on their keys over and over."""

    def __init__(self, link: ClusterLink, keys: Iterable[str]) -> None:
        self.link = link
        self.done: Counter[str] = Counter()  # by key
        self.failed: dict[str, list[LinkError]] = {key: [] for key in keys}
        self.longest = 0.0  # seconds

    async def __aenter__(self) -> "Counting":
        self._tasks = [asyncio.create_task(self._keep_counting(key)) for key in self.failed]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    _over = False

    async def _keep_counting(self, key: str) -> None:
        while not self._over:
            asked = time.perf_counter()
            found = await outcome(self.link, key)
            self.longest = max(self.longest, time.perf_counter() - asked)
            if isinstance(found, LinkError):
                self.failed[key].append(found)
            else:
                self.done[key] += 1
            await asyncio.sleep(0.005)


def stored(nodes: RedisCluster, key: str) -> int:
    """What has been counted, as its holder knows it. Nobody else has any of it."""
    return int(nodes.holder_of(key).client.get(key) or 0)


def key_of(nodes: RedisCluster, node: Node, number: int = 0) -> str:
    """A key that this primary holds."""
    return [key for key in SUBJECTS if nodes.holder_of(key) is node][number]


# ---- Who has what ----


async def test_each_script_runs_where_its_keys_are(nodes: RedisCluster, patient: None) -> None:
    async with opened(nodes.url()) as link:
        for times in (1, 2, 3):
            assert await asyncio.gather(*(link.call(COUNT, key) for key in SUBJECTS)) == [times] * len(SUBJECTS)
    sizes = [node.client.dbsize() for node in nodes.primaries]
    assert sum(sizes) == len(SUBJECTS)
    assert all(size > 5 for size in sizes)
    assert {stored(nodes, key) for key in SUBJECTS} == {3}


async def test_several_keys_of_one_hash_tag(nodes: RedisCluster, patient: None) -> None:
    both = Script("return {KEYS[1], redis.call('INCRBY', KEYS[2], ARGV[1])}")
    async with opened(nodes.url()) as link:
        for subject in range(50):
            log, sub = f"rate:{{address:{subject}}}:log".encode(), f"rate:{{address:{subject}}}:sub"
            assert await link.call(both, (log, sub), 7) == [log, 7]
        assert await link.call(COUNT, 5) == 1  # A number is a key as well.
        with pytest.raises(Refused, match="CROSSSLOT"):
            await link.call(both, ("{a}log", "{b}sub"), 7)
        assert await answers(link)


async def test_a_node_that_lacks_a_script_gets_it(nodes: RedisCluster, patient: None) -> None:
    def evals() -> list[int]:
        found = [node.client.info("commandstats") for node in nodes.primaries]
        return [int(stats.get("cmdstat_eval", {"calls": 0})["calls"]) for stats in found]

    for node in nodes.primaries:
        node.client.script_flush()
        node.client.config_resetstat()
    async with opened(nodes.url()) as link:
        for round_of in (1, 2):
            for key in SUBJECTS:
                assert not isinstance(await outcome(link, key), LinkError)
            assert evals() == [round_of] * 3
            for node in nodes.primaries:
                node.client.script_flush()


async def test_of_a_thousand_callers_each_gets_their_own_replies(nodes: RedisCluster, patient: None) -> None:
    echo = Script("return ARGV[1]")

    async def ask(link: ClusterLink, caller: int) -> None:
        for turn in range(3):
            assert await link.call(echo, f"{{caller:{caller}}}", f"{caller} {turn}") == f"{caller} {turn}".encode()

    async with opened(nodes.url()) as link:
        await asyncio.gather(*(ask(link, caller) for caller in range(1000)))


async def test_what_is_not_about_keys_is_asked_of_any(nodes: RedisCluster, patient: None) -> None:
    async with opened(nodes.url()) as link:
        assert await link.send("PING") == b"PONG"
        names = {await link.send("CLUSTER", "MYID") for _ in range(60)}
        assert names == {node.cluster("MYID").encode() for node in nodes.primaries}
        with pytest.raises(Refused):
            await link.send("NO")


@pytest.mark.parametrize("which", range(6))
async def test_one_node_is_enough_to_find_the_others(nodes: RedisCluster, patient: None, which: int) -> None:
    """A replica as well as a primary, and when others of the URL are of no use."""
    only = nodes.nodes[which]
    for url in (nodes.url(nodes=[only]), f"redis+cluster://127.0.0.1:{free_port()},{only.address}"):
        async with opened(url) as link:
            assert await answers(link)


async def test_a_node_that_does_not_know_its_own_host_has_the_one_it_was_asked_at() -> None:
    for name in (b"$-1\r\n", bulk(b"")):
        async with FakeCluster(name=name) as (one, two), opened(cluster_url(one)) as link:
            assert await link.call(COUNT, "a") == b"1"
            one.answer = answering(slots_of(name, one.port), moved_to=f":{two.port}")
            two.answer = answering(slots_of(name, two.port))
            assert await link.call(COUNT, "a") == b"1"


# ---- Slots that move ----


class Move:
    """A slot on its way from one primary to another, in the steps of the cluster's own tools."""

    def __init__(self, nodes: RedisCluster, key: str) -> None:
        self.nodes, self.slot = nodes, nodes.slot_of(key)
        self.source = nodes.holder_of(key)
        self.target = next(node for node in nodes.primaries if node is not self.source)

    def begin(self) -> None:
        self.target.cluster("SETSLOT", self.slot, "IMPORTING", self.source.cluster("MYID"))
        self.source.cluster("SETSLOT", self.slot, "MIGRATING", self.target.cluster("MYID"))

    def keys(self) -> list[str]:
        return list(self.source.cluster("GETKEYSINSLOT", self.slot, 1000))

    def take(self, *keys: str) -> None:
        host, port = self.target.address.split(":")
        self.source.client.execute_command("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)

    def end(self) -> None:
        for node in (self.target, self.source, *self.nodes.primaries):
            node.cluster("SETSLOT", self.slot, "NODE", self.target.cluster("MYID"))

    def all_at_once(self) -> None:
        self.begin()
        if keys := self.keys():
            self.take(*keys)
        self.end()


def rejected(node: Node) -> int:
    """How many calls it has sent to another node."""
    stats = node.client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("rejected_calls", 0)) for name in ("eval", "evalsha"))


async def test_a_slot_that_has_moved_is_followed_and_asked_for_there_from_then_on(
    nodes: RedisCluster, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SUBJECTS[0]
    async with opened(nodes.url()) as link:
        await link.call(COUNT, key)
        move = Move(nodes, key)
        move.all_at_once()
        before = rejected(move.source)
        assert [await link.call(COUNT, key) for _ in range(20)] == list(range(2, 22))
        assert rejected(move.source) == before + 1
        assert await answers(link)
    assert move.target.client.get(key) == "22"


async def test_nothing_is_lost_or_counted_twice_while_a_slot_moves(nodes: RedisCluster, patient: None) -> None:
    keys = [f"{{moving}}{number}" for number in range(20)]
    async with opened(nodes.url()) as link:
        async with Counting(link, [*keys, *SUBJECTS[:10]]) as counting:
            for _ in range(2):  # And on to somewhere else, or back.
                await asyncio.sleep(0.1)
                move = Move(nodes, keys[0])
                move.begin()
                for key in keys:  # Some are here, some are there.
                    move.take(key)
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
                move.end()
            await asyncio.sleep(0.1)
        assert not any(counting.failed.values())
        assert {key: stored(nodes, key) for key in counting.done} == counting.done


async def test_several_keys_that_are_apart_are_refused_and_not_half_counted(nodes: RedisCluster, patient: None) -> None:
    """As the cluster has it (TRYAGAIN), until they are together again."""
    keys = ("{apart}log", "{apart}sub")
    async with opened(nodes.url()) as link:
        assert await link.call(COUNT_THE_FIRST, keys) == 1
        move = Move(nodes, keys[0])
        move.begin()
        with pytest.raises(Refused, match="TRYAGAIN"):  # One of the two has never been: it could be there already.
            await link.call(COUNT_THE_FIRST, keys)
        move.take(keys[0])
        with pytest.raises(Refused, match="TRYAGAIN"):
            await link.call(COUNT_THE_FIRST, keys)
        move.end()
        assert await link.call(COUNT_THE_FIRST, keys) == 2
    assert stored(nodes, keys[0]) == 2


async def test_who_is_sent_round_in_circles_is_told_so() -> None:
    async with FakeCluster() as (one, two), opened(cluster_url(one)) as link:
        one.answer = answering(slots_of(bulk(b"127.0.0.1"), one.port), moved_to=f"127.0.0.1:{two.port}")
        two.answer = answering(slots_of(bulk(b"127.0.0.1"), one.port), moved_to=f"127.0.0.1:{one.port}")
        with takes(at_most=PROMPT), pytest.raises(LinkError):
            await link.call(COUNT, "a")
        asked = sum(words[0].startswith(b"EVAL") for reads in (one.reads, two.reads) for w in reads for words in w)
        assert asked <= 2 * (cluster_link.MOST_REDIRECTIONS + 1)


async def test_all_who_are_sent_to_a_node_that_is_new_are_answered(patient: None) -> None:
    async with FakeCluster() as (one, two), opened(cluster_url(one)) as link:
        one.answer = answering(slots_of(bulk(b"127.0.0.1"), one.port), moved_to=f"127.0.0.1:{two.port}")
        outcomes = await asyncio.gather(*(outcome(link, "a") for _ in range(50)))
        assert Counter(map(repr, outcomes)) == {repr(b"1"): 50}


@pytest.mark.parametrize("turns", range(4))
async def test_who_goes_when_sent_to_a_new_node_does_not_spoil_it_for_the_others(
    patient: None, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """However early they go: the node has to be connected to all the same."""
    made: list[Link] = []

    class Noted(Link):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(cluster_nodes, "Link", Noted)
    async with FakeCluster() as (one, two), opened(cluster_url(one)) as link:
        for node in (one, two):
            node.answer = answering(slots_of(bulk(b"127.0.0.1"), two.port))
        one.answer = answering(slots_of(bulk(b"127.0.0.1"), two.port), moved_to=f"127.0.0.1:{two.port}")
        asking = asyncio.create_task(outcome(link, "a"))
        while len(made) < 2:  # noqa: ASYNC110 -- it is about the very turn
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        await until_it_answers(link, ["a"])


# ---- Commands of one key, and several commands ----


async def test_a_command_goes_where_its_key_is(nodes: RedisCluster, patient: None) -> None:
    async with opened(nodes.url()) as link:
        for key in SUBJECTS:
            assert await link.ask("SET", key, f"of {key}") == b"OK"
        move = Move(nodes, SUBJECTS[0])
        move.begin()
        assert await link.ask("GET", SUBJECTS[0]) == f"of {SUBJECTS[0]}".encode()
        move.take(SUBJECTS[0])
        assert await link.ask("GET", SUBJECTS[0]) == f"of {SUBJECTS[0]}".encode()  # ASK
        move.end()
        assert await link.ask("GET", SUBJECTS[0]) == f"of {SUBJECTS[0]}".encode()  # MOVED
    assert sum(node.client.dbsize() for node in nodes.primaries) == len(SUBJECTS)


async def test_the_first_is_done_before_the_others(nodes: RedisCluster, patient: None) -> None:
    # In a script, time stands still.
    now = Script("local t = redis.call('TIME') for n = 1, tonumber(ARGV[1]) do end return t[1] * 1000000 + t[2]")
    async with opened(nodes.url()) as link:
        for key in SUBJECTS[:5]:
            await asyncio.gather(*(link.call(now, other, 0) for other in SUBJECTS))
            first, *others = await link.run((now, key, 5_000_000), *((now, other, 0) for other in SUBJECTS))
            assert min(others) > first + 3_000, "microseconds; the first takes some tens of thousands"


async def test_the_replies_are_in_the_order_of_the_commands(nodes: RedisCluster, patient: None) -> None:
    async with opened(nodes.url()) as link:
        assert await link.run(*(("SET", key, key) for key in SUBJECTS)) == [b"OK"] * len(SUBJECTS)
        assert await link.run(*(("GET", key) for key in SUBJECTS)) == [key.encode() for key in SUBJECTS]
        assert await link.run(("GET", SUBJECTS[0])) == [SUBJECTS[0].encode()]


async def test_what_fails_keeps_the_others_from_nothing(nodes: RedisCluster, patient: None) -> None:
    first, *others = SUBJECTS[:20]
    async with opened(nodes.url()) as link:
        await link.ask("HSET", others[0], "a", "hash")
        with pytest.raises(Refused, match="WRONGTYPE"):
            await link.run((COUNT, first), *((COUNT, key) for key in others))
        assert [stored(nodes, key) for key in (first, *others[1:])] == [1] * 19
        await link.ask("UNLINK", first)
        await link.ask("HSET", first, "a", "hash")
        with pytest.raises(Refused, match="WRONGTYPE"):
            await link.run((COUNT, first), *((COUNT, key) for key in others[1:]))
        assert [stored(nodes, key) for key in others[1:]] == [1] * 18  # Nothing comes before the first.


async def test_neighbours_are_one_write_and_only_what_has_moved_is_done_again(
    nodes: RedisCluster, patient: None
) -> None:
    """When it is the first, that is all: the others have to come after it."""
    for place_of_moved, counts in ((1, [1, 1, 1]), (0, [1, 2, 2])):
        keys = [key_of(nodes, nodes.primaries[0], number) for number in range(3)]
        async with opened(nodes.url()) as link:
            await link.send("PING")
            Move(nodes, keys[place_of_moved]).all_at_once()
            assert await link.run(*((COUNT, key) for key in keys)) == counts
        nodes.mend()


async def test_the_parts_are_all_who_hold_keys(nodes: RedisCluster, patient: None) -> None:
    async with opened(nodes.url()) as link:
        await link.run(*(("SET", key, 1) for key in SUBJECTS))
        parts = await link.parts(anew=True)
        assert sum([await part.send("DBSIZE") for part in parts]) == len(SUBJECTS)
        assert {await part.send("CLUSTER", "MYID") for part in parts} == {
            node.cluster("MYID").encode() for node in nodes.primaries
        }
    with pytest.raises(LinkDown):
        await link.parts()


async def test_who_takes_over_is_told_of_before_it_is_asked_for_anything(nodes: RedisCluster, patient: None) -> None:
    old = nodes.primaries[0]
    new, key = nodes.replica_of(old), key_of(nodes, old)
    changes: list[bool] = []
    async with opened(nodes.url()) as link:
        await link.call(COUNT, key)
        link.on_change(changes.append)
        new.cluster("FAILOVER")
        async with asyncio.timeout(SOON):
            while not calls(new):
                assert not isinstance(await outcome(link, key), LinkError)
                assert not calls(new) or changes[-2:] == [False, True]
        assert new.role == "master"


def calls(node: Node) -> int:
    """Of our scripts that came from here, and not from its primary."""
    return int(node.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


async def test_a_slot_that_moves_is_told_to_whom_it_concerns(nodes: RedisCluster, patient: None) -> None:
    ours, others = SUBJECTS[:2]
    told: list[bool] = []
    everybody: list[bool] = []
    async with opened(nodes.url()) as link:
        await link.ask("SET", ours, 1)
        link.on_change(told.append, ours)
        link.on_change(everybody.append)
        Move(nodes, others).all_at_once()
        await link.ask("GET", others)
        await asyncio.to_thread(patiently, nodes.is_whole)
        assert told == []
        move = Move(nodes, ours)
        move.begin()
        move.take(ours)
        assert await link.ask("GET", ours) == b"1"
        assert told == [True]  # A key of it.
        move.end()
        assert await link.ask("GET", ours) == b"1"
        assert told == [True, True]
        assert await link.ask("GET", ours) == b"1"
        assert told == [True, True]
        assert everybody == []


async def test_what_a_look_finds_is_told_as_well(
    nodes: RedisCluster, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    async with opened(nodes.url()) as link:
        await link.ask("SET", SUBJECTS[0], 1)
        link.on_change(told.append, SUBJECTS[0])
        Move(nodes, SUBJECTS[0]).all_at_once()
        await asyncio.to_thread(patiently, nodes.is_whole)
        await link.parts(anew=True)
        assert told == [True]


# ---- A primary that is lost ----


async def test_a_primary_that_is_killed_is_missed_by_its_keys_alone_and_not_for_long(nodes: RedisCluster) -> None:
    async with opened(nodes.url()) as link:
        await until_it_answers(link)
        victim = nodes.primaries[1]
        theirs = [key for key in SUBJECTS if nodes.holder_of(key) is victim]
        others = [key for key in SUBJECTS if key not in theirs]
        async with Counting(link, theirs[:5]) as counting, Counting(link, others[:5]) as going_on:
            await asyncio.sleep(0.2)
            victim.stop()
            await until(lambda: all(counting.failed.values()))
            done = going_on.done.total()
            await asyncio.sleep(0.5)
            assert going_on.done.total() > done
            assert link.up
            await until(lambda: nodes.holder_of(theirs[0]) is not victim, SOON)
            await until_it_answers(link, theirs)
        assert {type(error) for errors in counting.failed.values() for error in errors} <= {LinkDown, Refused}
        assert LinkDown in {type(errors[0]) for errors in counting.failed.values()}
        assert max(counting.longest, going_on.longest) < PROMPT
        assert sum(map(len, going_on.failed.values())) <= going_on.done.total() / 10  # A busy machine may hang.
        nodes.mend()  # It comes back as a replica.
        await until_it_answers(link)
        assert await answers(link)


async def test_a_primary_that_hangs_is_replaced_and_not_waited_for(
    nodes: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_answers(monkeypatch, 0.1)
    async with opened(nodes.url()) as link:
        await until_it_answers(link)
        victim = nodes.primaries[2]
        key, other = key_of(nodes, victim), key_of(nodes, nodes.primaries[0])
        replica = nodes.replica_of(victim)
        with victim.stopped():
            with takes(at_most=PROMPT):
                assert isinstance(await outcome(link, key), LinkDown)
            for _ in range(20):
                with takes(at_most=PROMPT):
                    assert isinstance(await outcome(link, key), LinkDown)
                assert not isinstance(await outcome(link, other), LinkError)
            await asyncio.to_thread(patiently, lambda: replica.role == "master")
            await until_it_answers(link, [key, other])
            counted = await outcome(link, key)
        for number in range(1, 40):  # It wakes up, and believes for a moment that it is the primary still.
            assert await outcome(link, key) == counted + number
            await asyncio.sleep(0.01)
        patiently(nodes.is_whole)
        assert stored(nodes, key) == counted + 39


async def test_a_primary_that_hangs_for_a_moment_is_used_again(
    nodes: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_answers(monkeypatch, 0.05)
    async with opened(nodes.url()) as link:
        await until_it_answers(link)
        victim = nodes.primaries[0]
        key = key_of(nodes, victim)
        with victim.stopped():
            assert isinstance(await outcome(link, key), LinkDown)
        await until_it_answers(link)
        assert nodes.holder_of(key) is victim


async def test_a_primary_that_hands_over_loses_nothing(nodes: RedisCluster, patient: None) -> None:
    async with opened(nodes.url()) as link:
        old = nodes.primaries[0]
        new = nodes.replica_of(old)
        keys = [key for key in SUBJECTS if nodes.holder_of(key) is old][:8]
        async with Counting(link, keys) as counting:
            await asyncio.sleep(0.1)
            new.cluster("FAILOVER")
            await asyncio.to_thread(patiently, lambda: new.role == "master")
            await until_it_answers(link, SUBJECTS[-1:])
            before = counting.done.copy()
            await until(lambda: all(counting.done[key] > before[key] + 5 for key in keys), SOON)
        patiently(nodes.is_whole)
        for key in keys:
            assert nodes.holder_of(key) is new
            done, failed = counting.done[key], len(counting.failed[key])
            extra = int(key == SUBJECTS[-1])
            assert done <= stored(nodes, key) <= done + failed + 99 * extra, key


async def test_a_seed_that_is_gone_is_not_needed_any_more(nodes: RedisCluster) -> None:
    first, second = nodes.primaries[:2]
    async with opened(nodes.url(nodes=[first])) as link:
        first.stop()
        key = key_of(nodes, second)
        await until_it_answers(link, [key])
        await until_it_answers(link)


# ---- All of it ----


async def test_the_whole_cluster_is_away_and_back(nodes: RedisCluster) -> None:
    changes: list[tuple[bool, bool]] = []
    link = ClusterLink(nodes.url(), "test")
    link.on_change(lambda up: changes.append((up, link.up)))
    await link.open()
    try:
        await until(lambda: changes == [(True, True)] * 3)  # Each primary is told of.
        await until_it_answers(link)
        for node in nodes.nodes:
            node.stop()
        await until(lambda: not link.up)
        assert changes[-1] == (False, False)  # It is so by the time they are told.
        for key in SUBJECTS:
            with takes(at_most=PROMPT), pytest.raises(LinkDown):
                await link.call(COUNT, key)
        with pytest.raises(LinkDown):
            await link.send("PING")
        with pytest.raises(LinkDown):
            await link.parts(anew=True)
        nodes.mend()
        await until(lambda: link.up, SOON)
        await until_it_answers(link)
        assert changes[-1] == (True, True)
    finally:
        await link.close()
    assert changes[-1] == (False, False)
    assert (True, False) not in changes


async def test_a_cluster_that_is_not_there_yet_does_not_hold_up_a_start(nodes: RedisCluster) -> None:
    for node in nodes.nodes:
        node.stop()
    with takes(at_most=redis_link.FIRST_TRY + PROMPT):
        link = ClusterLink(nodes.url(), "test")
        await link.open()
    try:
        assert not link.up
        with takes(at_most=PROMPT), pytest.raises(LinkDown):
            await link.call(COUNT, "key")
        nodes.mend()
        await until(lambda: link.up, SOON)
        await until_it_answers(link)
    finally:
        await link.close()


async def test_a_cluster_that_hangs_does_not_hold_up_a_start_nor_a_close() -> None:
    async with FakeServer() as one, FakeServer() as two:
        one.shakes_hands = two.shakes_hands = False
        link = ClusterLink(f"redis+cluster://127.0.0.1:{one.port},127.0.0.1:{two.port}", "test")
        with takes(at_most=redis_link.FIRST_TRY + PROMPT):
            await link.open()
        assert not link.up
        with takes(at_most=PROMPT):
            await link.close()


async def test_what_is_wrong_with_a_cluster_is_said_once(
    nodes: RedisCluster, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without the password."""
    monkeypatch.setattr(cluster_nodes, "LOOK_AGAIN", 0.02)
    for url in (
        nodes.url(f"nobody:{SECRET}@"),
        f"redis+cluster://127.0.0.1:{valkey.port}",  # That is no cluster.
        f"redis+cluster://127.0.0.1:{free_port()}",
    ):
        with capture_logs() as lines:
            async with opened(url) as link:
                await asyncio.sleep(0.3)
                assert not link.up
                with pytest.raises(LinkDown):
                    await link.call(COUNT, "key")
        assert SECRET not in repr(lines)
        assert [line["log_level"] for line in lines] == ["warning"], url


# ---- The end ----


async def test_a_close_leaves_nothing_behind(nodes: RedisCluster, patient: None) -> None:
    def connections() -> list[int]:
        return [
            sum(client["cmd"].startswith("eval") for client in node.client.client_list()) for node in nodes.primaries
        ]

    tasks = asyncio.all_tasks()
    link = ClusterLink(nodes.url(), "test")
    await link.open()
    await link.call(COUNT, "key")
    assert await answers(link)
    assert connections() == [1, 1, 1]  # One to each.
    with capture_logs() as lines, takes(at_most=PROMPT):
        await link.close()
    assert lines == []  # It is no outage.
    assert asyncio.all_tasks() == tasks
    await asyncio.to_thread(patiently, lambda: connections() == [0, 0, 0])
    with pytest.raises(LinkDown):
        await link.call(COUNT, "key")
    with pytest.raises(LinkDown):
        await link.send("PING")
    await link.close()
    assert not link.up


async def test_a_close_ends_what_is_pending(patient: None) -> None:
    async with FakeCluster() as (one, _):
        link = ClusterLink(cluster_url(one), "test")
        await link.open()
        one.muted = True
        asked = [asyncio.create_task(outcome(link, "a")) for _ in range(10)]
        await asyncio.sleep(0.02)
        with takes(at_most=PROMPT):
            await link.close()
            assert {type(found) for found in await asyncio.gather(*asked)} == {LinkDown}


@pytest.mark.parametrize("turns", range(8))
async def test_who_is_sent_elsewhere_during_a_close_opens_nothing_new(patient: None, turns: int) -> None:
    async with FakeCluster() as (one, two):
        tasks = asyncio.all_tasks()
        link = ClusterLink(cluster_url(one), "test")
        await link.open()
        one.answer = answering(slots_of(bulk(b"127.0.0.1"), one.port), moved_to=f"127.0.0.1:{two.port}")
        one.muted = True
        asking = asyncio.create_task(outcome(link, "a"))
        await until(lambda: any(connection.kept for connection in one.connections))
        closing = asyncio.create_task(link.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        one.release()
        await closing
        await asking
        assert not link.up
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("turns", range(8))
async def test_a_close_while_it_parts_with_a_node_leaves_nothing_behind(
    patient: None, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    monkeypatch.setattr(cluster_nodes, "LOOK", 0.02)
    async with FakeCluster() as (one, two):
        tasks = asyncio.all_tasks()
        link = ClusterLink(cluster_url(one), "test")
        await link.open()
        closing = after_a_takeover(link, turns, link.close)
        take_over(one, two)
        await until(lambda: closing)
        await closing[0]
        assert asyncio.all_tasks() == tasks
        await until(lambda: open_connections(one, two) == 0)


@pytest.mark.parametrize("turns", range(8))
async def test_who_goes_while_a_node_is_parted_with_does_not_keep_it(patient: None, turns: int) -> None:
    async with FakeCluster() as (one, two), opened(cluster_url(one)) as link:

        async def go() -> None:
            looking.cancel()

        going = after_a_takeover(link, turns, go)
        take_over(one, two)
        looking = asyncio.create_task(link.parts(anew=True))
        await asyncio.wait([looking])
        await going[0]
        await link.parts(anew=True)
        await until(lambda: open_connections(one) == 0)
        assert await link.call(COUNT, "a") == b"1"


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_close_that_is_cut_off_is_done_all_the_same(patient: None, turns: int) -> None:
    async with FakeCluster() as (one, two):
        tasks = asyncio.all_tasks()
        link = ClusterLink(cluster_url(one), "test")
        await link.open()
        closing = asyncio.create_task(link.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await until(lambda: open_connections(one, two) == 0)
        await until(lambda: asyncio.all_tasks() == tasks)


async def test_a_link_that_was_never_opened_can_be_closed() -> None:
    link = ClusterLink(f"redis+cluster://127.0.0.1:{free_port()}", "test")
    with pytest.raises(LinkDown):
        await link.call(COUNT, "key")
    await link.close()


# ---- Nodes whose every word is up to the test ----


def slots_of(host: bytes, port: int) -> bytes:
    """Says that one node holds everything."""
    return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n%b:%d\r\n%b" % (host, port, bulk(b"node"))


def answering(slots: bytes, moved_to: str = "") -> Callable[[list[bytes]], bytes]:
    """Answers 1, or that everything has moved; and who holds what."""

    def answer(words: list[bytes]) -> bytes:
        if words[0] == b"CLUSTER":
            return slots
        return b"-MOVED 1 %b\r\n" % moved_to.encode() if moved_to else bulk(b"1")

    return answer


class FakeCluster:
    """Two nodes, the first of which holds everything."""

    def __init__(self, name: bytes = b"$9\r\n127.0.0.1\r\n") -> None:
        self.name = name

    async def __aenter__(self) -> tuple[FakeServer, FakeServer]:
        self.one, self.two = await FakeServer().__aenter__(), await FakeServer().__aenter__()
        for node in (self.one, self.two):
            node.answer = answering(slots_of(self.name, self.one.port))
        return self.one, self.two

    async def __aexit__(self, *_: object) -> None:
        await self.one.__aexit__()
        await self.two.__aexit__()


def cluster_url(node: FakeServer) -> str:
    return f"redis+cluster://127.0.0.1:{node.port}"


def take_over(old: FakeServer, new: FakeServer) -> None:
    """The latter holds everything from now on."""
    for node in (old, new):
        node.answer = answering(slots_of(bulk(b"127.0.0.1"), new.port))


def after_a_takeover(
    link: ClusterLink, turns: int, action: Callable[[], Coroutine[Any, Any, None]]
) -> list[asyncio.Task[None]]:
    """Has this done so many turns of the loop after the link has found a new primary, and begun to part with the old.

    Returns: what becomes the task that does it.
    """
    tasks: list[asyncio.Task[None]] = []

    async def act() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await action()

    def on_change(up: bool) -> None:
        if not up and not tasks:
            tasks.append(asyncio.create_task(act()))

    link.on_change(on_change)
    return tasks


def open_connections(*nodes: FakeServer) -> int:
    """As they see it."""
    return sum(not connection.transport.is_closing() for node in nodes for connection in node.connections)
