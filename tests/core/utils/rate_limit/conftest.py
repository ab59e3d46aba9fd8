"""What the limiter's tests share: the script as one call of a plain client, at the server's time or at a given one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from prometheus_client import REGISTRY
from redis import Redis

from app.core.utils.rate_limit.script import DECIDE, LONGEST_LOG, SUB_WINDOWS
from scripts.embedded import Valkey

SECOND: Final = 1_000_000  # microseconds, as all times here
NOW: Final = 1_800_000_000 * SECOND  # where the time begins that tests set; also where a sub-window does
SLACK: Final = 1 + 1 / SUB_WINDOWS  # A sub-window leaves as a whole.
Client = Any  # redis-py's types leave open whether one has to await.

# The same script, but that it says when it decided; and, in the second, that it is told what time it is.
_CLOCK: Final = "redis.call('TIME')"
TELLING: Final = DECIDE.source.replace("local reply = {wait}", "local reply = {text(clock), wait}")
TOLD: Final = TELLING.replace(_CLOCK, "{ARGV[#ARGV - 1], ARGV[#ARGV]}")

LOG, SUB = 20, 200  # a limit of each form
FORMS = pytest.mark.parametrize("limit", [LOG, SUB], ids=["log", "sub-windows"])
assert LOG <= LONGEST_LOG < SUB
assert len({DECIDE.source, TELLING, TOLD}) == 3


@dataclass(frozen=True)
class Reply:
    """What the script said, and when."""

    at: int
    wait: int
    used: tuple[int, ...]
    free_in: tuple[int, ...]

    @property
    def passed(self) -> bool:
        return self.wait == 0


class Caller:
    """Somebody who asks. After every single call, all its keys have to have an expiry, of no more than their period."""

    def __init__(self, client: Client, subject: str = "user:1", now: int | None = None) -> None:
        """
        Args:
            client: asks the server.
            subject: who it is.
            now: the time to decide by, instead of the server's. Can be set at any moment.
        """
        self.client = client
        self.subject = subject
        self.now = now

    @property
    def list_of_periods(self) -> str:
        """The key of the list of the periods that were counted last."""
        return f"rate:{{{self.subject}}}:/thing:periods"

    def keys(self, period: float) -> list[str]:
        """The log and the sub-windows of a window of so many seconds."""
        return [f"rate:{{{self.subject}}}:/thing:{period}:{form}" for form in ("log", "sub")]

    def ask(self, *windows: tuple[int, float], cost: int = 1) -> Reply:
        """A request, under windows of a limit and seconds each."""
        return self.ask_often(1, *windows, cost=cost)[0]

    def peek(self, *windows: tuple[int, float]) -> Reply:
        """How it stands, without a request."""
        return self.ask(*windows, cost=0)

    def ask_often(self, times: int, *windows: tuple[int, float], cost: int = 1) -> list[Reply]:
        """So many requests at once."""
        keys = [self.list_of_periods, *(key for _, period in windows for key in self.keys(period))]
        words: list[Any] = [cost, " ".join(str(period) for _, period in windows), len(windows)]
        words += [n for limit, period in windows for n in (limit, round(period * SECOND))]
        if self.now is not None:
            words += divmod(self.now, SECOND)
        pipeline = self.client.pipeline(transaction=False)
        for _ in range(times):
            pipeline.eval(TELLING if self.now is None else TOLD, len(keys), *keys, *words)
            for key in keys:
                pipeline.pttl(key)
        answers = pipeline.execute()
        step = 1 + len(keys)
        for first in range(0, len(answers), step):
            longest = max(period for _, period in windows)
            periods = [longest, *(period for _, period in windows for _ in range(2))]
            for key, period, left in zip(keys, periods, answers[first + 1 : first + step], strict=True):
                assert left == -2 or 0 <= left <= period * 1000 * SLACK + 2, (key, left)
        return [_reply(answer) for answer in answers[::step]]


def _reply(answer: list[Any]) -> Reply:
    return Reply(int(answer[0]), answer[1], tuple(answer[2::2]), tuple(answer[3::2]))


def most_in_any_period(replies: Iterable[Reply], period: float, cost: int = 1) -> int:
    """The most that passed in any half-open interval of so many seconds; the worst begins with a request."""
    times = [reply.at for reply in replies if reply.passed]
    return max(sum(begin <= at < begin + period * SECOND for at in times) * cost for begin in times)


def server_now(client: Client) -> int:
    """The server's clock."""
    seconds, microseconds = client.time()
    return int(seconds) * SECOND + int(microseconds)


@pytest.fixture
def client(valkey: Valkey) -> Iterator[Client]:
    """A plain client of an empty server."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def caller(client: Client) -> Caller:
    """Somebody who asks by the server's time."""
    return Caller(client)


@pytest.fixture
def told(client: Client) -> Caller:
    """Somebody for whom the time is what the test says. Keys still expire by the server's: periods have to be long."""
    return Caller(client, now=NOW)


def metric(name: str, **labels: str) -> float:
    """What Prometheus would read now."""
    return REGISTRY.get_sample_value(f"slipway_rate_limit_{name}", labels) or 0
