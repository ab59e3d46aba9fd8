"""A rule whose periods change counts what callers did within the new ones, as far as the old ones recorded it."""

import random
from typing import Protocol

import pytest

from app.core.utils.rate_limit.in_process import InProcess
from app.core.utils.rate_limit.rules import Rule, Window
from app.core.utils.rate_limit.script import LONGEST_LOG
from tests.core.utils.rate_limit.conftest import LOG, SECOND, SLACK, SUB, Caller

Windows = tuple[tuple[int, int], ...]  # limit and seconds of each

MINUTE, HOUR, DAY = 60, 3600, 86_400


class Counting(Protocol):
    """A subject and its clock, whatever counts."""

    def used(self, *windows: tuple[int, int]) -> tuple[int, ...]: ...

    def passes(self, *windows: tuple[int, int]) -> bool: ...

    def sleep(self, seconds: float) -> None: ...

    def __call__(self) -> float: ...


class InValkey:
    """Counts by the script. Keys expire by the server's clock: all periods are far longer than a test takes."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def __call__(self) -> float:
        assert self.caller.now is not None
        return self.caller.now / SECOND

    def used(self, *windows: tuple[int, int]) -> tuple[int, ...]:
        return self.caller.peek(*windows).used

    def passes(self, *windows: tuple[int, int]) -> bool:
        return self.caller.ask(*windows).passed

    def sleep(self, seconds: float) -> None:
        assert self.caller.now is not None
        self.caller.now += round(seconds * SECOND)


class InMemory:
    """Counts in process, as while Valkey is away."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.limiter = InProcess(lambda: self.now)

    def __call__(self) -> float:
        return self.now

    def used(self, *windows: tuple[int, int]) -> tuple[int, ...]:
        return tuple(self._decide(windows, 0)[1::2])

    def passes(self, *windows: tuple[int, int]) -> bool:
        return self._decide(windows, 1)[0] == 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def _decide(self, windows: Windows, cost: int) -> list[int]:
        return self.limiter.decide("user:1", (Rule("rule", "/thing", tuple(Window(*one) for one in windows)),), cost)


@pytest.fixture(params=["Valkey", "memory"])
def counting(request: pytest.FixtureRequest) -> Counting:
    return InValkey(request.getfixturevalue("told")) if request.param == "Valkey" else InMemory()


def ask(counting: Counting, times: int, *windows: tuple[int, int], pause: float = 0.01) -> int:
    """So many requests, one after the other. Returns how many passed."""
    passed = 0
    for _ in range(times):
        passed += counting.passes(*windows)
        counting.sleep(pause)
    return passed


LIMITS = pytest.mark.parametrize("after", [LOG, SUB], ids=["to log", "to sub-windows"])
BEFORE = pytest.mark.parametrize("before", [LOG, SUB], ids=["from log", "from sub-windows"])


@BEFORE
@pytest.mark.parametrize("after", [1, LOG, SUB])
@pytest.mark.parametrize(("old", "new"), [(MINUTE, HOUR), (HOUR, MINUTE), (MINUTE, MINUTE + 1), (DAY, MINUTE)])
def test_another_period_counts_what_was_done_within_it(
    counting: Counting, before: int, after: int, old: int, new: int
) -> None:
    assert ask(counting, 15, (before, old)) == 15
    assert counting.used((after, new)) == (15,)
    assert ask(counting, after + 5, (after, new)) == max(0, after - 15)


def test_a_limit_of_100_in_4_s_that_becomes_1_in_60_s(counting: Counting) -> None:
    assert ask(counting, 3, (100, 4)) == 3
    counting.sleep(3)
    assert not counting.passes((1, 60))
    counting.sleep(60)
    assert counting.passes((1, 60))
    assert not counting.passes((1, 60))


@BEFORE
@LIMITS
def test_a_shorter_period_leaves_out_what_is_older(counting: Counting, before: int, after: int) -> None:
    ask(counting, 7, (before, HOUR))
    counting.sleep(2 * MINUTE)
    ask(counting, 4, (before, HOUR))
    assert counting.used((after, MINUTE)) == (4,)


@BEFORE
@LIMITS
def test_what_is_carried_over_is_free_again_after_the_new_period(counting: Counting, before: int, after: int) -> None:
    ask(counting, 15, (before, MINUTE))
    counting.used((after, HOUR))
    counting.sleep(HOUR - MINUTE)
    assert counting.used((after, HOUR)) == (15,)
    counting.sleep(MINUTE * SLACK + HOUR / 60)
    assert counting.used((after, HOUR)) == (0,)


@BEFORE
@LIMITS
@pytest.mark.parametrize("new", [MINUTE // 2, DAY])
def test_an_additional_window_begins_with_what_the_others_recorded(
    counting: Counting, before: int, after: int, new: int
) -> None:
    ask(counting, 12, (before, MINUTE))
    assert counting.used((before, MINUTE), (after, new)) == (12, 12)


def test_a_window_that_another_one_replaces_is_not_needed_for_what_the_longer_one_recorded(counting: Counting) -> None:
    ask(counting, 9, (LOG, MINUTE), (SUB, DAY))
    counting.sleep(HOUR)
    assert counting.used((LOG, HOUR * 2), (SUB, DAY)) == (9, 9)


@pytest.mark.parametrize(
    "changed",
    [
        ((SUB, DAY), (LOG, MINUTE)),
        ((SUB, DAY),),
        ((LOG, DAY),),
        ((SUB, DAY), (LOG, 7 * DAY)),
        ((LOG, 2 * DAY),),
    ],
    ids=["other order", "the first is gone", "and the form", "another week", "two days for both"],
)
def test_windows_that_change_places_go_or_come_keep_the_count(counting: Counting, changed: Windows) -> None:
    ask(counting, 11, (LOG, MINUTE), (SUB, DAY))
    counting.sleep(HOUR)
    assert all(
        used in {0, 11} and (used == 11 or period == MINUTE)
        for used, (_, period) in zip(counting.used(*changed), changed, strict=True)
    )


@BEFORE
@LIMITS
def test_a_change_that_is_taken_back_loses_nothing(counting: Counting, before: int, after: int) -> None:
    ask(counting, 8, (before, HOUR))
    counting.sleep(2 * MINUTE)
    ask(counting, 3, (after, MINUTE))
    used = counting.used((before, HOUR))
    assert used == (11,)


@pytest.mark.parametrize(
    "windows", [((LOG, MINUTE), (LOG, HOUR)), ((SUB, MINUTE), (SUB, HOUR)), ((LOG, MINUTE), (SUB, HOUR))]
)
def test_processes_that_go_by_different_rules_for_a_while_multiply_nothing(
    counting: Counting, windows: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """Until each has heard of the change, requests come under the old rule and the new one in turn."""
    passed = 0
    for turn in range(40):
        passed += counting.passes(windows[turn % 2])
        counting.sleep(0.05)
        assert all(counting.used(one)[0] <= passed for one in windows)
    assert passed >= LOG
    assert counting.used(windows[1])[0] >= passed // 2


PERIODS = [MINUTE, 2 * MINUTE, HOUR, DAY]


@pytest.mark.parametrize("seed", range(6))
def test_no_window_counts_more_than_was_done_nor_less_than_is_known(counting: Counting, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- no secret
    passed: list[float] = []
    for _ in range(60):
        period, limit = chance.choice(PERIODS), chance.choice([5, LOG, LONGEST_LOG, SUB, 1000])
        for _ in range(chance.randint(1, 30)):
            used = counting.used((limit, period))[0]
            # A sub-window of any former period leaves as a whole.
            assert used <= sum(at > counting() - (period + 2 * max(PERIODS) / 60) for at in passed), (limit, period)
            # Whatever was in force knows what was done within the shortest period.
            assert used >= sum(at > counting() - min(PERIODS) for at in passed), (limit, period)
            if counting.passes((limit, period)):
                passed.append(counting())
            counting.sleep(chance.choice([0.001, 0.5, 5]))
        counting.sleep(chance.choice([0, 1, MINUTE, HOUR / 3]))


def test_the_list_of_periods_is_kept_with_the_counts_and_expires(told: Caller) -> None:
    told.ask((LOG, MINUTE), (SUB, HOUR))
    assert told.client.get(told.list_of_periods) == b"60 3600"
    told.ask((LOG, DAY))
    assert told.client.get(told.list_of_periods) == b"86400"
    assert 0 < told.client.pttl(told.list_of_periods) <= DAY * 1000


def test_a_look_at_an_unused_window_leaves_no_key(told: Caller) -> None:
    told.peek((LOG, MINUTE))
    told.peek((SUB, HOUR))
    assert told.client.dbsize() == 0


def test_counts_without_a_list_go_on(told: Caller) -> None:
    """As after an upgrade from a version that kept none."""
    told.ask_often(5, (LOG, MINUTE))
    told.client.delete(told.list_of_periods)
    assert told.ask((LOG, MINUTE)).used == (6,)
    assert told.peek((LOG, HOUR)).used == (6,)


def test_a_refusal_carries_over_as_well(told: Caller) -> None:
    told.ask_often(10, (LOG, MINUTE))
    assert not told.ask((1, HOUR)).passed
    assert not told.ask((1, HOUR)).passed
    assert told.peek((LOG, HOUR)).used == (10,)
