"""What the tests of the last hour share: processes, each with its own metrics, and a clock that can be set."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from redis import Redis

from app.core.metrics.recent.clock import MinuteClock
from app.core.metrics.recent.hour import BOUNDS
from app.core.metrics.recent.keys import ROOT
from app.core.metrics.recent.reading import Recent
from app.core.metrics.recent.recorder import Recorder
from app.core.metrics.recent.sampling import Metrics, Sampler
from app.core.utils.rate_limit.metrics import Subjects
from app.core.utils.redis_link import AnyLink, link_to
from scripts.embedded import Valkey
from tests.core.utils.conftest import formed, nodes  # noqa: F401 -- fixtures
from tests.core.utils.test_redis_cluster import wait_for_answers

Client = Any  # redis-py's types leave open whether one has to await.
PATIENCE: Final = 5.0  # seconds
LONGEST: Final = 2.0  # seconds that a test takes which is about minutes


def own_metrics() -> Metrics:
    """The metrics of a process, as the app has them, but nobody else's."""
    registry = CollectorRegistry()
    labels = ["path", "result", "counted_in"]
    return Metrics(
        requests=Counter("http_requests", "Requests.", ["method", "route", "status"], registry=registry),
        seconds=Histogram("http_seconds", "Seconds.", ["method", "route"], registry=registry, buckets=BOUNDS),
        cache=Counter("cache_requests", "Cached.", ["prefix", "result"], registry=registry),
        limits=Counter("rate_limit_requests", "Limited.", labels, registry=registry),
    )


class SetClock(MinuteClock):
    """The server's, set ahead by so many minutes."""

    ahead = 0

    def minute(self) -> int:
        return super().minute() + self.ahead


class Process:
    """A process of the API that looks at what it has counted when it is told to."""

    def __init__(self, link: AnyLink) -> None:
        self.metrics = own_metrics()
        self.clock = SetClock()
        self.subjects = Subjects()
        self.recorder = Recorder(link, self.clock, self.subjects, Sampler(self.metrics))

    def ask(self, route: str = "/thing", status: object = 200, seconds: float = 0.003, times: int = 1) -> None:
        """Counts requests."""
        self.metrics.requests.labels("GET", route, str(status)).inc(times)
        for _ in range(times):
            self.metrics.seconds.labels("GET", route).observe(seconds)

    async def look(self) -> None:
        await self.recorder.look()


@pytest.fixture(autouse=True)
def _within_a_minute() -> None:
    """No test is about a minute that happens to end meanwhile."""
    left = 60 - time.time() % 60
    if left < LONGEST:
        time.sleep(left)


@pytest.fixture
def plain(valkey: Valkey) -> Iterator[Client]:
    """A plain client of an empty server."""
    with Redis(host="127.0.0.1", port=valkey.port, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that is not about a server that hangs."""
    wait_for_answers(monkeypatch, PATIENCE)


@pytest.fixture
async def link(plain: Client, valkey: Valkey, patient: None) -> AsyncIterator[AnyLink]:
    """An open link to an empty server."""
    link = link_to(f"redis://127.0.0.1:{valkey.port}", "test")
    await link.open()
    yield link
    await link.close()


def read(link: AnyLink) -> Recent:
    """To read with, as a process that has recorded nothing does."""
    return Recent(link, MinuteClock())


def keys_of(client: Client) -> list[str]:
    """All keys of the last hour."""
    return sorted(client.scan_iter(f"{ROOT}*"))
