"""What counting costs in Valkey, and that nothing of it stays: not even of a call or a server that ended early."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from app.core.utils.rate_limit.rules import Rule, Window
from app.core.utils.rate_limit.script import DECIDE, LONGEST_LOG
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.core.utils.rate_limit.conftest import FORMS, LOG, NOW, SECOND, SUB, Caller, Client

SUBJECTS = 100_000
MOST_BYTES = 1000  # of a subject with a few requests
MOST_BYTES_OF_A_FULL_LOG = 4000
AT_ONCE = 5000  # calls of one pipeline


def ask(client: Client, rule: Rule, subjects: Iterable[int], times: int = 1, cost: int = 1) -> None:
    """So many requests of each subject."""
    sha = client.script_load(DECIDE.source)
    pipeline = client.pipeline(transaction=False)
    for number in subjects:
        keys = rule.keys(f"user:{number}")
        for _ in range(times):
            pipeline.evalsha(sha, len(keys), *keys, cost, *rule.arguments)
        if len(pipeline) >= AT_ONCE:
            pipeline.execute()
    pipeline.execute()


def all_expiries(client: Client) -> list[int]:
    """Of every key on the server, its milliseconds left."""
    keys = list(client.scan_iter(count=10_000))
    expiries: list[int] = []
    for first in range(0, len(keys), AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for key in keys[first : first + AT_ONCE]:
            pipeline.pttl(key)
        expiries += pipeline.execute()
    return expiries


def bytes_used(client: Client) -> int:
    """Of the whole server: with its tables of keys and of expiries."""
    return int(client.info("memory")["used_memory"])


def bytes_of_keys(client: Client) -> float:
    """Of one window on average, its key included."""
    windows = [key for key in client.scan_iter(count=1000) if not key.endswith(b":periods")]
    sizes = [int(client.memory_usage(key, samples=0)) for key in windows]
    return sum(sizes) / len(sizes)


def rule_of(limit: int, period: int) -> Rule:
    return Rule("a rule", "/api/v1/user/{username}", (Window(limit, period),))


@pytest.mark.parametrize(("limit", "requests"), [(LOG, 2), (SUB, 1)])
def test_a_hundred_thousand_subjects_take_little_and_every_key_expires(
    client: Client, limit: int, requests: int
) -> None:
    client.execute_command("FLUSHALL", "SYNC")  # What was there before is not freed while this is measured.
    before = bytes_used(client)
    ask(client, rule_of(limit, 3600), range(SUBJECTS), times=requests)
    assert client.dbsize() == 2 * SUBJECTS  # A window, and the list of the rule's periods.
    assert (bytes_used(client) - before) / SUBJECTS < MOST_BYTES
    expiries = all_expiries(client)
    assert len(expiries) == 2 * SUBJECTS
    assert 0 < min(expiries) <= max(expiries) <= 3600 * 1000 + 1
    client.flushall()


def test_the_largest_log_is_bounded(client: Client) -> None:
    ask(client, rule_of(LONGEST_LOG, 3600), range(2000), cost=LONGEST_LOG)
    assert client.zcard(rule_of(LONGEST_LOG, 3600).keys("user:1")[1]) == LONGEST_LOG
    assert bytes_of_keys(client) < MOST_BYTES_OF_A_FULL_LOG


def test_a_limit_of_millions_takes_no_more_than_one_of_hundreds(client: Client) -> None:
    """All sub-windows of a subject are filled, by calls at times of our choice."""
    used = []
    for limit in (SUB, 2_000_000):
        client.flushall()
        for number in range(20):
            caller = Caller(client, f"user:{number}", now=NOW)
            for turn in range(80):
                caller.now = NOW + turn * 45 * SECOND
                caller.ask((limit, 3600), cost=limit // 80)
        used.append(bytes_of_keys(client))
    print(f"{used = }")  # noqa: T201
    assert used[1] < 1.5 * used[0]
    assert used[1] < MOST_BYTES_OF_A_FULL_LOG


@FORMS
def test_nothing_is_left_when_all_have_gone(client: Client, limit: int) -> None:
    ask(client, rule_of(limit, 1), range(SUBJECTS // 2))
    assert client.dbsize() > 0
    deadline = time.monotonic() + 15
    while client.dbsize() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.dbsize() == 0


# ---- What ends early ----


@contextmanager
def full(client: Client) -> Iterator[None]:
    """A server that has no memory left, and may not evict anything."""
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


CHANGES = pytest.mark.parametrize("before", [None, LOG, SUB], ids=["new", "was log", "was sub-windows"])


@FORMS
@CHANGES
def test_a_full_server_is_left_with_no_key_that_stays(client: Client, limit: int, before: int | None) -> None:
    """Whether it refuses the call or has room for it after all."""
    caller = Caller(client)
    if before:
        caller.ask_often(5, (before, 60))
    with full(client):
        for windows in ([(limit, 60)], [(limit, 60), (SUB, 90), (LOG, 120)]):
            with suppress(OutOfMemoryError):
                caller.ask(*windows)
            with suppress(OutOfMemoryError):
                caller.peek(*windows)
    assert all(0 < left <= 121_000 for left in all_expiries(client))
    used = caller.peek((limit, 60)).used[0]
    assert (5 if before else 0) <= used <= (7 if before else 2)


def test_windows_of_a_call_that_a_full_server_refuses_are_as_they_were(client: Client) -> None:
    caller = Caller(client)
    windows = [(SUB, 60), (LOG, 90), (SUB, 120)]
    for _ in range(3):
        caller.ask(*windows)
    with full(client):
        passed = 0
        for _ in range(3):
            with suppress(OutOfMemoryError):
                passed += caller.ask(*windows).passed
    assert caller.peek(*windows).used == (3 + passed,) * 3


def test_a_server_that_is_killed_amid_the_load_has_no_key_that_stays() -> None:
    """What a call writes is in its file as a whole, or not at all."""
    with scratch_folder() as folder:
        port = free_port()
        with Valkey(folder / "valkey", port=port) as server:
            rules = [
                Rule("both", "/both", (Window(LOG, 3600), Window(SUB, 7200))),
                Rule("log", "/log", (Window(LOG, 3600),)),
                Rule("sub", "/sub", (Window(SUB, 3600),)),
            ]

            def load(rule: Rule) -> None:
                with suppress(RedisConnectionError), Redis(host="127.0.0.1", port=port) as client:
                    for turn in range(1000):
                        ask(client, rule, range(turn * 200, turn * 200 + 300))

            threads = [threading.Thread(target=load, args=(rule,)) for rule in rules]
            for thread in threads:
                thread.start()
            time.sleep(1)
            assert server.process is not None
            server.process.kill()
            for thread in threads:
                thread.join()
        with Valkey(folder / "valkey", port=port), Redis(host="127.0.0.1", port=port) as client:
            expiries = all_expiries(client)
            assert len(expiries) > 1000
            assert 0 < min(expiries) <= max(expiries) <= 7_200_001
