"""The sliding window in Valkey: never more than the limit in any period, and after one the whole of it again."""

import random
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot

from app.core.utils.rate_limit.rules import Rule, Window
from app.core.utils.rate_limit.script import DECIDE, LONGEST_LOG, SUB_WINDOWS
from scripts.embedded import Valkey
from tests.core.utils.rate_limit.conftest import (
    FORMS,
    LOG,
    SECOND,
    SLACK,
    SUB,
    Caller,
    Client,
    Reply,
    most_in_any_period,
    server_now,
)

LONG = 1000.0  # seconds of a period that does not end while a test runs
LONG_US = int(LONG * SECOND)
NAP = LONG_US // SUB_WINDOWS // 4  # several of them fit into a sub-window


def never_too_many(replies: list[Reply], limit: int, period: float = LONG, cost: int = 1) -> None:
    """Fails when more passed than may, or when one was refused for which there was room."""
    assert most_in_any_period(replies, period, cost) <= limit
    passed = [reply.at for reply in replies if reply.passed]
    memory = period * SECOND * SLACK + LONGEST_LOG  # Those of one microsecond are counted as one after the other.
    for reply in replies:
        if not reply.passed:
            assert sum(reply.at - memory < at <= reply.at for at in passed) * cost > limit - cost, reply


# ---- How many pass ----


@FORMS
def test_as_many_pass_as_may(caller: Caller, limit: int) -> None:
    replies = caller.ask_often(limit + 50, (limit, LONG))
    assert [reply.passed for reply in replies] == [True] * limit + [False] * 50
    assert [reply.used[0] for reply in replies] == [*range(1, limit + 1)] + [limit] * 50


@FORMS
def test_as_many_pass_as_may_when_many_clients_ask_at_once(valkey: Valkey, client: Client, limit: int) -> None:
    replies: list[Reply] = []

    def ask() -> None:
        with Redis(host="127.0.0.1", port=valkey.port) as mine:
            for _ in range(10):
                replies.extend(Caller(mine).ask_often(6, (limit, LONG)))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 300
    assert sum(reply.passed for reply in replies) == limit


@FORMS
def test_never_more_in_any_period_by_the_server_s_own_time(caller: Caller, limit: int) -> None:
    """Bursts at random moments, and on both sides of each second of the server's clock, where windows have edges."""
    seed = random.randrange(10_000)  # noqa: S311 -- no secret
    print(f"{seed = }")  # noqa: T201
    chance = random.Random(seed)  # noqa: S311
    replies: list[Reply] = []
    offsets = (-0.02, -0.002, 0, 0.002, 0.02, 1 / SUB_WINDOWS)
    begin = server_now(caller.client) / SECOND
    edges = [int(begin) + second + offset for second in (1, 2, 3) for offset in offsets]
    for moment in sorted([*edges, *(begin + chance.uniform(0, 3.2) for _ in range(30))]):
        time.sleep(max(0, moment - time.time()))
        replies += caller.ask_often(chance.randint(1, limit // 2), (limit, 1))
    assert sum(reply.passed for reply in replies) >= 2 * limit
    assert not all(reply.passed for reply in replies)
    never_too_many(replies, limit, 1)


@FORMS
@pytest.mark.parametrize("seed", range(4))
def test_never_more_in_any_period_however_requests_come(told: Caller, limit: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- no secret
    replies: list[Reply] = []
    for _ in range(40):
        replies += told.ask_often(chance.randint(1, limit // 3), (limit, LONG))
        told.now = replies[-1].at + chance.choice([0, 1, 7, NAP // 50, NAP, 10 * NAP, LONG_US // 2, LONG_US])
    never_too_many(replies, limit)


@FORMS
@pytest.mark.parametrize("cost", [3, 7])
def test_never_more_in_any_period_when_requests_weigh_more(told: Caller, limit: int, cost: int) -> None:
    chance = random.Random(cost)  # noqa: S311 -- no secret
    replies: list[Reply] = []
    for _ in range(150):
        replies += told.ask_often(chance.randint(1, 3), (limit, LONG), cost=cost)
        told.now = replies[-1].at + chance.choice([0, 1, NAP, 10 * NAP, LONG_US // 3])
    never_too_many(replies, limit, cost=cost)


@FORMS
def test_the_whole_limit_is_there_again_after_a_period(caller: Caller, limit: int) -> None:
    for _ in range(3):
        assert all(reply.passed for reply in caller.ask_often(limit, (limit, 0.3)))
        assert not caller.ask((limit, 0.3)).passed
        time.sleep(0.301)


@FORMS
def test_the_whole_limit_is_there_a_period_after_the_last_request_to_the_microsecond(told: Caller, limit: int) -> None:
    for _ in range(limit):
        last = told.ask((limit, LONG))
        assert last.passed
        told.now = last.at + NAP // 3
    told.now = last.at + LONG_US
    assert told.peek((limit, LONG)).used == (0,)
    assert all(reply.passed for reply in told.ask_often(limit, (limit, LONG)))


@FORMS
def test_what_is_refused_is_not_counted(told: Caller, limit: int) -> None:
    first = told.ask_often(limit, (limit, LONG))[0]
    for part in range(1, 10):
        told.now = first.at + part * LONG_US // 10
        assert not any(reply.passed for reply in told.ask_often(limit, (limit, LONG)))
    told.now = first.at + LONG_US + limit
    assert all(reply.passed for reply in told.ask_often(limit, (limit, LONG)))


@FORMS
def test_many_requests_of_the_same_microsecond_are_all_counted(told: Caller, limit: int) -> None:
    replies = told.ask_often(3 * limit, (limit, LONG))
    assert len({reply.at for reply in replies}) == 1
    assert sum(reply.passed for reply in replies) == limit
    assert told.peek((limit, LONG)).used == (limit,)


@FORMS
def test_callers_have_windows_of_their_own(client: Client, limit: int) -> None:
    first, second = Caller(client, "user:1"), Caller(client, "user:2")
    first.ask_often(limit, (limit, LONG))
    assert not first.ask((limit, LONG)).passed
    assert second.ask((limit, LONG)).used == (1,)


# ---- How long to wait ----


@FORMS
def test_the_wait_is_exact_to_the_microsecond(told: Caller, limit: int) -> None:
    for _ in range(limit):
        told.now = told.ask((limit, LONG)).at + NAP // 3
    for _ in range(3):
        refused = told.ask((limit, LONG))
        assert not refused.passed
        told.now = refused.at + refused.wait - 1
        assert told.ask((limit, LONG)).wait == 1
        told.now += 1
        assert told.ask((limit, LONG)).passed
        while told.peek((limit, LONG)).used[0] < limit:
            assert told.ask((limit, LONG)).passed


@FORMS
def test_the_wait_for_one_that_weighs_more_is_exact(told: Caller, limit: int) -> None:
    for _ in range(limit):
        told.now = told.ask((limit, LONG)).at + NAP // 3
    refused = told.ask((limit, LONG), cost=limit // 2)
    assert refused.wait > told.ask((limit, LONG)).wait > 0
    told.now = refused.at + refused.wait - 1
    assert told.ask((limit, LONG), cost=limit // 2).wait == 1
    told.now += 1
    assert told.ask((limit, LONG), cost=limit // 2).passed


@FORMS
def test_the_wait_is_exact_by_the_server_s_own_time(caller: Caller, limit: int) -> None:
    caller.ask_often(limit, (limit, 0.3))
    refused = caller.ask((limit, 0.3))
    assert 0 < refused.wait <= 0.3 * SECOND
    replies: list[Reply] = []
    while not replies or (not replies[-1].passed and replies[-1].at < refused.at + SECOND):
        replies.append(caller.ask((limit, 0.3)))
    *early, passed = replies
    assert passed.passed
    assert all(reply.at + reply.wait == refused.at + refused.wait for reply in early)
    assert early[-1].at < refused.at + refused.wait <= passed.at


def test_of_several_windows_the_longest_wait_counts(told: Caller) -> None:
    windows = [(2, LONG), (2, 2 * LONG), (SUB, 3 * LONG)]
    told.ask_often(2, *windows)
    refused = told.ask(*windows)
    assert refused.wait == refused.free_in[1] == 2 * LONG_US


# ---- What requests weigh ----


@FORMS
def test_a_cost_is_counted_as_so_many_requests(told: Caller, limit: int) -> None:
    assert told.ask((limit, LONG), cost=limit - 3).used == (limit - 3,)
    refused = told.ask((limit, LONG), cost=4)
    assert not refused.passed
    assert refused.used == (limit - 3,)
    assert told.ask((limit, LONG), cost=3).used == (limit,)
    assert not told.ask((limit, LONG)).passed


@FORMS
def test_a_cost_above_the_limit_counts_as_the_limit(told: Caller, limit: int) -> None:
    heavy = told.ask((limit, LONG), cost=1_000_000)
    assert heavy.passed
    assert heavy.used == (limit,)
    assert not told.ask((limit, LONG)).passed
    told.now = heavy.at + LONG_US + limit
    told.ask((limit, LONG))
    assert told.ask((limit, LONG), cost=1_000_000).wait > 0


def test_a_cost_is_cut_to_the_limit_of_each_window(told: Caller) -> None:
    assert told.ask((5, LONG), (SUB, 2 * LONG), cost=50).used == (5, 50)


@FORMS
def test_a_look_counts_nothing(told: Caller, limit: int) -> None:
    nothing = told.peek((limit, LONG))
    assert (nothing.wait, nothing.used, nothing.free_in) == (0, (0,), (0,))
    assert told.client.dbsize() == 0
    told.ask_often(limit, (limit, LONG))
    for _ in range(3):
        look = told.peek((limit, LONG))
        assert (look.wait, look.used, look.free_in) == (0, (limit,), (LONG_US,))


# ---- Several windows ----


@pytest.mark.parametrize(("strict", "wide"), [(3, LOG), (3, SUB), (SUB, SUB + 100)])
@pytest.mark.parametrize("strict_first", [True, False])
def test_what_one_window_refuses_no_other_counts(told: Caller, strict: int, wide: int, strict_first: bool) -> None:
    windows = [(strict, LONG), (wide, 2 * LONG)][:: 1 if strict_first else -1]
    replies = told.ask_often(strict + 5, *windows)
    assert sum(reply.passed for reply in replies) == strict
    assert told.peek(*windows).used == (strict, strict)


def test_every_window_holds_by_itself(told: Caller) -> None:
    windows = [(5, LONG / 10), (12, LONG), (SUB, 2 * LONG)]
    replies: list[Reply] = []
    for _ in range(100):
        replies += told.ask_often(3, *windows)
        told.now = replies[-1].at + LONG_US // 40
    for limit, period in windows:
        assert most_in_any_period(replies, period) <= limit
    assert most_in_any_period(replies, LONG / 10) == 5
    assert most_in_any_period(replies, LONG) == 12


def test_all_keys_of_a_call_are_in_one_slot() -> None:
    rule = Rule("one", "/api/v1/user/{username}", (Window(5, 60), Window(1000, 86_400)))
    for subject in ("user:1", "address:2001:db8::/64", "address:10.0.0.1"):
        keys = rule.keys(subject)
        assert len(set(keys)) == 5
        assert len({key_slot(key) for key in keys}) == 1
    assert key_slot(rule.keys("user:1")[0]) != key_slot(rule.keys("user:2")[0])


def test_the_script_as_it_is_takes_the_keys_and_numbers_of_a_rule(client: Client) -> None:
    rule = Rule("one", "/api/v1/users", (Window(2, 60), Window(SUB, 3600)))
    keys = rule.keys("user:1")
    replies = [client.eval(DECIDE.source, len(keys), *keys, 1, *rule.arguments) for _ in range(3)]
    assert replies[0] == [0, 1, 60 * SECOND, 1, 3600 * SECOND]
    assert replies[2][0] == replies[2][2] <= 60 * SECOND
    assert [reply[1::2] for reply in replies] == [[1, 1], [2, 2], [2, 2]]
    assert set(client.keys()) == {keys[0], keys[1], keys[4]}


# ---- What the reply says ----


@FORMS
def test_the_reply_says_when_some_is_free_again(told: Caller, limit: int) -> None:
    first = told.ask((limit, LONG))
    assert (first.used, first.free_in) == ((1,), (LONG_US,))
    told.now = first.at + LONG_US // 4
    assert told.ask((limit, LONG)).free_in == (LONG_US * 3 // 4,)
    told.now = first.at + LONG_US - 1
    assert told.peek((limit, LONG)).free_in == (1,)
    told.now += 1
    look = told.peek((limit, LONG))
    assert (look.used, look.free_in) == ((1,), (LONG_US // 4,))


@FORMS
def test_a_look_right_after_a_request_says_what_the_request_was_told(told: Caller, limit: int) -> None:
    for _ in range(6):
        reply = told.ask((limit, LONG))
        look = told.peek((limit, LONG))
        assert (look.used, look.free_in) == (reply.used, reply.free_in)
        told.now = reply.at + NAP


def test_of_what_is_unused_nothing_becomes_free(told: Caller) -> None:
    """The minute is over, the day is used up."""
    windows = [(5, LONG / 100), (5, LONG)]
    last = told.ask_often(5, *windows)[-1]
    told.now = last.at + LONG_US // 50
    refused = told.ask(*windows)
    assert (refused.passed, refused.used) == (False, (0, 5))
    assert refused.free_in[0] == 0


# ---- Another limit than before ----


LIMITS = [(20, 5), (500, 200), (200, 20), (500, LONGEST_LOG), (LONGEST_LOG + 1, LONGEST_LOG)]


@pytest.mark.parametrize(("before", "after"), LIMITS)
def test_a_lowered_limit_refuses_at_once(told: Caller, before: int, after: int) -> None:
    last = told.ask_often(after + 1, (before, LONG))[-1]
    told.now = last.at + NAP
    refused = told.ask((after, LONG))
    assert not refused.passed
    assert refused.used[0] >= after
    told.now = refused.at + refused.wait
    assert told.ask((after, LONG)).passed


@pytest.mark.parametrize(("before", "after"), [(after, before) for before, after in LIMITS])
def test_a_raised_limit_adds_what_it_is_more(told: Caller, before: int, after: int) -> None:
    told.ask_often(before + 3, (before, LONG))
    replies = told.ask_often(after, (after, LONG))
    assert sum(reply.passed for reply in replies) == after - before
    assert told.peek((after, LONG)).used == (after,)


@pytest.mark.parametrize("used", [1, 60, LONGEST_LOG])
def test_what_is_used_is_the_same_in_the_other_form_and_back(told: Caller, used: int) -> None:
    for _ in range(used):
        told.now = told.ask((SUB, LONG)).at + NAP // 10
    for limit in (LONGEST_LOG, SUB, LONGEST_LOG, LOG, SUB, LOG):
        assert told.peek((limit, LONG)).used == (used,)
        log, sub = told.keys(LONG)
        assert told.client.exists(log) + told.client.exists(sub) == 1


def test_more_than_a_log_takes_is_still_there_when_the_limit_is_raised_again(told: Caller) -> None:
    """As while a mistake is being corrected, or processes have not all heard of a change."""
    told.ask_often(900, (1000, LONG))
    assert not told.ask((100, LONG)).passed
    replies = told.ask_often(1000, (1000, LONG))
    assert sum(reply.passed for reply in replies) == 100


@pytest.mark.parametrize("cost", [1, 100])
def test_what_was_carried_over_into_a_log_does_not_leave_early(told: Caller, cost: int) -> None:
    last = told.ask_often(100 // cost, (SUB, LONG), cost=cost)[-1]
    assert not told.ask((100, LONG)).passed
    told.now = last.at + LONG_US - 1
    assert not told.ask((100, LONG)).passed


@pytest.mark.parametrize("seed", range(4))
def test_never_more_in_any_period_while_the_limit_changes(told: Caller, seed: int) -> None:
    """What passes under a limit is, with all before it, not more than that limit."""
    chance = random.Random(seed)  # noqa: S311 -- no secret
    passed: list[int] = []
    for _ in range(60):
        limit = chance.choice([5, LOG, LONGEST_LOG, LONGEST_LOG + 1, SUB])
        for _ in range(chance.randint(1, 40)):
            reply = told.ask((limit, LONG))
            if reply.passed:
                passed.append(reply.at)
                assert sum(at > reply.at - LONG_US for at in passed) <= limit, (limit, len(passed))
            told.now = reply.at + chance.choice([1, 10, NAP // 50, NAP])
        told.now = reply.at + chance.choice([1, NAP, LONG_US // 3])


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_multiplied_while_the_limit_changes(told: Caller, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- no secret
    passed: list[int] = []
    for _ in range(400):
        reply = told.ask((chance.choice([5, LOG, LONGEST_LOG, SUB]), LONG))
        passed += [reply.at] if reply.passed else []
        memory = LONG_US * SLACK + LONGEST_LOG
        assert reply.used[0] <= sum(at > reply.at - memory for at in passed)
        told.now = reply.at + chance.choice([1, NAP // 50, NAP])


def test_a_limit_that_is_lowered_far_does_not_hold_up_the_server(told: Caller) -> None:
    """Fifty millions were used: to go through them one by one would take a while, in which nobody is served."""
    windows = [(50_000_000, LONG)]
    told.ask(*windows, cost=50_000_000)
    begin = time.perf_counter()
    assert not told.ask((100, LONG)).passed
    assert time.perf_counter() - begin < 0.4


# ---- A clock that is set ----


@FORMS
@pytest.mark.parametrize("periods", [0.3, 0.9, 1.5, 1000])
def test_a_clock_that_is_set_back_locks_nobody_out_for_longer_than_a_period(
    told: Caller, limit: int, periods: float
) -> None:
    last = told.ask_often(limit, (limit, LONG))[-1]
    told.now = last.at - int(periods * LONG_US)
    reply = told.ask((limit, LONG))
    assert reply.wait <= LONG_US * SLACK
    told.now += int(LONG_US * SLACK)
    assert told.ask((limit, LONG)).passed


@FORMS
def test_stored_times_in_the_far_future_count_as_if_they_were_now(caller: Caller, limit: int) -> None:
    """By the server's own time: as if it had been set back by an hour since."""
    caller.ask_often(limit, (limit, 60))
    log, sub = caller.keys(60)
    for member, at in caller.client.zrange(log, 0, -1, withscores=True):
        caller.client.zrem(log, member)
        caller.client.zadd(log, {str(int(at) + 3600 * SECOND): at + 3600 * SECOND})
    for field, value in caller.client.hgetall(sub).items():
        caller.client.hset(sub, _moved_field(field, 3600, 60), _moved_value(field, value, 3600))
    reply = caller.ask((limit, 60))
    assert reply.used == (limit,)
    assert 0 < reply.wait <= 60 * SECOND * SLACK


def _moved_field(field: bytes, seconds: int, period: int) -> bytes:
    return b"%d" % (int(field) + seconds * SUB_WINDOWS // period) if field.isdigit() else field


def _moved_value(field: bytes, value: bytes, seconds: int) -> bytes:
    if field.isdigit():
        count, last = map(int, value.split())
        return b"%d %d" % (count, last + seconds * SECOND)
    moved = {b"newest": seconds * SECOND, b"oldest": seconds * SUB_WINDOWS // 60, b"used": 0}
    return b"%d" % (int(value) + moved[field])


@FORMS
def test_a_clock_that_is_set_forward_is_no_trouble(told: Caller, limit: int) -> None:
    last = told.ask_often(limit, (limit, LONG))[-1]
    told.now = last.at + 50 * LONG_US
    assert told.ask((limit, LONG)).used == (1,)


# ---- The log against a model of a few lines ----


class Model:
    """What a log is meant to do: the times of all that passed, no two of them the same."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def ask(self, now: int, limit: int, cost: int) -> tuple[int, int, int]:
        self.times = [at for at in self.times if at > now - LONG_US]
        cost = min(cost, limit)
        free_in = self.times[0] + LONG_US - now if self.times else LONG_US if cost else 0
        over = len(self.times) + cost - limit
        if cost and over > 0:
            return self.times[over - 1] + LONG_US - now, len(self.times), free_in
        begin = max([now, *(at + 1 for at in self.times[-1:])])
        self.times += range(begin, begin + cost)
        return 0, len(self.times), free_in


@pytest.mark.parametrize("seed", range(5))
def test_a_log_does_what_the_model_does(told: Caller, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- no secret
    model = Model()
    refused = 0
    for _ in range(400):
        assert told.now is not None
        limit, cost = chance.choice([5, LOG, LONGEST_LOG]), chance.choice([0, 1, 1, 1, 1, 2, 9, 300])
        reply = told.ask((limit, LONG), cost=cost)
        assert (reply.wait, reply.used[0], reply.free_in[0]) == model.ask(told.now, limit, cost)
        refused += not reply.passed
        pauses: list[Any] = [0, 0, 1, 3, NAP, LONG_US // 5, reply.wait, reply.wait - 1, reply.free_in[0], LONG_US]
        told.now += max(0, chance.choice(pauses))
    assert 50 < refused < 350


# ---- Expiry ----


@FORMS
def test_keys_are_gone_a_period_after_the_last_request(caller: Caller, limit: int) -> None:
    """That every key has an expiry after every call is checked with each call of these tests."""
    for turn in range(3):
        caller.ask_often(limit, (limit, 0.2 if turn else 0.1))
    assert caller.client.dbsize() > 0
    time.sleep(0.25)
    for period in (0.1, 0.2):
        assert not any(caller.client.exists(key) for key in caller.keys(period))


@FORMS
def test_a_refusal_does_not_keep_a_key_for_longer(caller: Caller, limit: int) -> None:
    caller.ask_often(limit, (limit, LONG))
    key = next(key for key in caller.keys(LONG) if caller.client.exists(key))
    left = []
    for _ in range(3):
        caller.ask_often(5, (limit, LONG))
        caller.peek((limit, LONG))
        left.append(caller.client.pttl(key))
        time.sleep(0.005)
    assert all(later < earlier for earlier, later in pairwise(left))


@FORMS
def test_what_is_carried_over_expires_when_it_would_have(caller: Caller, limit: int) -> None:
    caller.ask_often(5, (limit, 0.4))
    time.sleep(0.2)
    for other in (LOG, SUB, LOG, SUB):
        caller.peek((other, 0.4))
        assert sum(max(0, caller.client.pttl(key)) for key in caller.keys(0.4)) <= 202
