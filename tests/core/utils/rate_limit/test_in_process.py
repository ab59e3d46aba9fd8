"""The limiter of an outage: each process counts for itself, up to its part of every limit."""

import random

import pytest

from app.core.utils.rate_limit import in_process as module
from app.core.utils.rate_limit.in_process import InProcess
from app.core.utils.rate_limit.rules import Rule, Window
from app.core.utils.rate_limit.script import SUB_WINDOWS
from tests.core.utils.rate_limit.conftest import LOG, SECOND, SUB

PERIOD = 60
LIMITS = pytest.mark.parametrize("limit", [1, LOG, SUB])


class Clock:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Outage:
    """A limiter of an outage, its clock, and one who asks it."""

    def __init__(self, processes: int = 1) -> None:
        self.clock = Clock()
        self.limiter = InProcess(self.clock)
        self.limiter.processes = processes

    def ask(self, *windows: Window, cost: int = 1, subject: str = "user:1", path: str = "/thing") -> list[int]:
        """What the script would answer."""
        return self.limiter.decide(subject, (Rule("rule", path, windows),), cost)

    def passes(self, *windows: Window, cost: int = 1, subject: str = "user:1") -> bool:
        return self.ask(*windows, cost=cost, subject=subject)[0] == 0


@pytest.fixture
def outage() -> Outage:
    return Outage()


@pytest.mark.parametrize(
    ("limit", "processes", "share"), [(100, 1, 100), (100, 3, 33), (100, 4, 25), (3, 4, 1), (1, 50, 1)]
)
def test_a_process_has_its_part_of_the_limit_and_never_none(limit: int, processes: int, share: int) -> None:
    outage = Outage(processes)
    assert [outage.passes(Window(limit, PERIOD)) for _ in range(share + 5)] == [True] * share + [False] * 5


def test_all_processes_together_pass_no_more_than_the_limit() -> None:
    processes = [Outage(processes=7) for _ in range(7)]
    passed = sum(outage.passes(Window(100, PERIOD)) for _ in range(50) for outage in processes)
    assert 100 - 7 < passed <= 100


@LIMITS
@pytest.mark.parametrize("seed", range(4))
def test_never_more_in_any_period(outage: Outage, limit: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 -- no secret
    outage.clock.now = chance.uniform(0, 100_000)
    passed: list[float] = []
    for _ in range(3000):
        if outage.passes(Window(limit, PERIOD)):
            passed.append(outage.clock.now)
        else:
            slack = PERIOD + PERIOD / SUB_WINDOWS
            assert sum(outage.clock.now - slack < at for at in passed) >= limit
        outage.clock.now += chance.choice([0, 0.001, chance.uniform(0, 4 * PERIOD / limit), 0.5, PERIOD / 3])
    for begin in passed:
        assert sum(begin <= at < begin + PERIOD for at in passed) <= limit


@LIMITS
def test_the_whole_limit_is_there_again_after_a_period(outage: Outage, limit: int) -> None:
    window = Window(limit, PERIOD)
    for _ in range(3):
        assert all(outage.passes(window) for _ in range(limit))
        assert not outage.passes(window)
        outage.clock.now += PERIOD


def test_what_is_refused_is_not_counted(outage: Outage) -> None:
    window = Window(5, PERIOD)
    for _ in range(20):
        outage.ask(window)
        outage.clock.now += 1
    outage.clock.now = 1000.0 + PERIOD
    assert outage.passes(window)


@LIMITS
def test_the_wait_is_exact(outage: Outage, limit: int) -> None:
    window = Window(limit, PERIOD)
    for _ in range(limit):
        assert outage.passes(window)
        outage.clock.now += 0.125
    wait = outage.ask(window)[0] / SECOND
    refused_at = outage.clock.now
    outage.clock.now = refused_at + wait - 0.001
    assert not outage.passes(window)
    outage.clock.now = refused_at + wait + 0.000_001
    assert outage.passes(window)


def test_whoever_waits_as_told_passes_and_is_counted(outage: Outage) -> None:
    """Also where a floating-point sum is not what it should be."""
    chance = random.Random(1)  # noqa: S311 -- no secret
    for _ in range(20_000):
        outage.limiter.forget()
        outage.clock.now = last = chance.uniform(0, 1000)
        assert outage.passes(Window(1, PERIOD))
        outage.clock.now = last + PERIOD
        wait, used, _ = outage.ask(Window(1, PERIOD))
        assert wait or not outage.passes(Window(1, PERIOD)), last
        assert used == 1


def test_a_cost_is_counted_as_so_many_requests_up_to_the_part() -> None:
    outage = Outage(processes=2)
    window = Window(20, PERIOD)
    assert outage.passes(window, cost=7)
    assert not outage.passes(window, cost=4)
    assert outage.passes(window, cost=3)
    assert not outage.passes(window)
    outage.clock.now += PERIOD
    assert outage.passes(window, cost=1_000_000)
    assert not outage.passes(window)


def test_a_look_counts_nothing(outage: Outage) -> None:
    window = Window(2, PERIOD)
    assert outage.ask(window, cost=0) == [0, 0, 0]
    outage.ask(window)
    outage.ask(window)
    for _ in range(3):
        assert outage.ask(window, cost=0) == [0, 2, PERIOD * SECOND]


def test_what_one_window_refuses_no_other_counts(outage: Outage) -> None:
    windows = [Window(100, 3600), Window(3, PERIOD), Window(50, 86_400)]
    replies = [outage.ask(*windows) for _ in range(10)]
    assert [reply[0] == 0 for reply in replies] == [True] * 3 + [False] * 7
    assert replies[-1][1::2] == [3, 3, 3]


def test_of_several_windows_the_longest_wait_counts(outage: Outage) -> None:
    windows = [Window(1, PERIOD), Window(1, 3600)]
    outage.ask(*windows)
    assert outage.ask(*windows)[0] == 3600 * SECOND


def test_of_what_is_unused_nothing_becomes_free(outage: Outage) -> None:
    """The minute is over, the day is used up."""
    windows = [Window(1, PERIOD), Window(1, 86_400)]
    outage.ask(*windows)
    outage.clock.now += PERIOD
    assert outage.ask(*windows)[1:3] == [0, 0]


def test_several_rules_are_told_about_at_once(outage: Outage) -> None:
    one = Rule("one", "/one", (Window(5, PERIOD), Window(9, 3600)))
    other = Rule("other", "/other", (Window(7, PERIOD),))
    outage.limiter.decide("user:1", (one,), 2)
    reply = outage.limiter.decide("user:1", (one, other), 0)
    assert reply == [0, 2, PERIOD * SECOND, 2, 3600 * SECOND, 0, 0]


def test_what_is_said_fits_the_whole_limit() -> None:
    """Callers know the policy, and nothing of processes: what remains of it is what remains here."""
    outage = Outage(processes=4)
    window = Window(100, PERIOD)
    assert outage.ask(window)[1] == 100 - 24
    for _ in range(30):
        reply = outage.ask(window)
    assert reply[1] == 100
    assert reply[0] > 0


def test_fewer_processes_leave_more_for_each() -> None:
    outage = Outage(processes=4)
    window = Window(100, PERIOD)
    assert sum(outage.passes(window) for _ in range(100)) == 25
    outage.limiter.processes = 2
    assert sum(outage.passes(window) for _ in range(100)) == 25
    outage.limiter.processes = 10
    assert not outage.passes(window)
    outage.clock.now += PERIOD
    assert sum(outage.passes(window) for _ in range(100)) == 10


def test_subjects_and_paths_are_counted_each_for_itself(outage: Outage) -> None:
    window = Window(1, PERIOD)
    assert outage.passes(window, subject="user:1")
    assert outage.passes(window, subject="user:2")
    assert outage.ask(window, path="/another")[0] == 0
    assert not outage.passes(window, subject="user:1")


def test_those_who_were_seen_last_are_remembered(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SUBJECTS", 100)
    window = Window(1, PERIOD)
    for number in range(100):
        assert outage.passes(window, subject=f"user:{number}")
    assert not outage.passes(window, subject="user:0")  # It is the one seen last, now.
    assert outage.passes(window, subject="user:100")
    assert len(outage.limiter._buckets) == 100
    assert not outage.passes(window, subject="user:0")
    assert outage.passes(window, subject="user:1")  # Forgotten.
    for number in range(1000):
        outage.ask(window, subject=f"another:{number}")
    assert len(outage.limiter._buckets) == 100


def test_one_window_is_a_sub_window_s_worth_of_memory_however_much_is_asked(outage: Outage) -> None:
    window = Window(1_000_000, PERIOD)
    for _ in range(20_000):
        outage.ask(window)
        outage.clock.now += 0.01
    (bucket,) = outage.limiter._buckets.values()
    (counter,) = bucket.counters.values()
    assert len(counter._subs) <= SUB_WINDOWS + 1


def test_after_the_outage_all_is_forgotten(outage: Outage) -> None:
    window = Window(1, PERIOD)
    outage.ask(window)
    outage.limiter.forget()
    assert outage.limiter._buckets == {}
    assert outage.passes(window)


def test_decisions_are_counted(outage: Outage) -> None:
    for _ in range(3):
        outage.ask(Window(1, PERIOD))
    assert outage.limiter.decisions == 3
