"""Whether the system is well, and if not, why: words about facts, without asking anybody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from app.admin.figures import duration, figure
from app.core.metrics.recent import Totals
from app.core.readiness import State
from app.core.utils.queue import WorkerSeen

MINUTES: Final = 5  # that requests are judged by
FEW: Final = 20  # requests, or timed ones, in these minutes: a share of fewer says nothing
ERROR_SHARE: Final = 0.01
P95: Final = 1.0  # seconds
QUEUE_AGE: Final = 60.0  # seconds

_NAMES: Final = {
    "postgres": "The database",
    "schema": "The database's schema",
    "postgres_read": "The database's replica",
    "redis_cache": "The cache's server",
    "redis_rate_limit": "The rate limits' server",
    "redis_queue": "The job queue's server",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        text: a sentence.
        page: where in the console there is more, below its address; None: nowhere.
    """

    text: str
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known; None for what is not, or what the app does not have.

    Attributes:
        states: of what the app talks to.
        totals: of the last `MINUTES`.
        queue_age: for how many seconds the oldest job has been due.
        dead: jobs that were given up in the last hour.
        workers: all that were heard of lately.
        cache_usable: whether this process uses the cache.
        limits_shared: whether this process counts calls together with the others.
    """

    states: Mapping[str, State] = field(default_factory=dict)
    totals: Totals | None = None
    queue_age: float | None = None
    dead: int | None = None
    workers: Sequence[WorkerSeen] | None = None
    cache_usable: bool | None = None
    limits_shared: bool | None = None

    @property
    def living(self) -> list[WorkerSeen]:
        """The workers that are not late."""
        return [worker for worker in self.workers or () if not worker.late]


def name_of(dependency: str) -> str:
    """What a dependency is called in words."""
    return _NAMES.get(dependency, dependency)


def faults_in(facts: Facts) -> list[Fault]:
    """All that is not well, the gravest first; nothing when the system is well.

    That is: a dependency is not up, or the database's schema is behind; of at least 20 requests in the last five
    minutes 1 % or more have failed, or 5 % took longer than a second; a job has been due for more than a minute; jobs
    were given up in the last hour; no worker lives, or one was not heard of lately and has not said that it ends; the
    cache is not in use; limits are counted in each process.
    """
    return [*_of_dependencies(facts), *_of_requests(facts.totals), *_of_jobs(facts), *_of_servers(facts)]


def _of_dependencies(facts: Facts) -> list[Fault]:
    words = {"down": "does not answer", "behind": "is behind: migrations have to be run"}
    return [Fault(f"{name_of(name)} {words[state]}.") for name, state in facts.states.items() if state != "up"]


def _of_requests(totals: Totals | None) -> list[Fault]:
    if totals is None:
        return []
    found = []
    if totals.requests >= FEW and (share := totals.error_share or 0.0) >= ERROR_SHARE:
        found.append(Fault(f"{figure(100 * share)} % of the requests of the last {MINUTES} minutes have failed."))
    if totals.timed >= FEW and (p95 := totals.p95 or 0.0) > P95:
        found.append(Fault(f"5 % of the requests of the last {MINUTES} minutes took longer than {figure(p95)} s."))
    return found


def _of_jobs(facts: Facts) -> list[Fault]:
    found = []
    if facts.workers is not None and not facts.living:
        found.append(Fault("No worker is alive: jobs wait.", "/workers"))
    elif late := [worker.heard_seconds for worker in facts.workers or () if worker.late]:
        one = f"1 worker was not heard of for {duration(max(late))}."
        more = f"{len(late)} workers were not heard of for up to {duration(max(late))}."
        found.append(Fault(one if len(late) == 1 else more, "/workers"))
    if facts.queue_age is not None and facts.queue_age > QUEUE_AGE:
        found.append(Fault(f"A job has been due for {duration(facts.queue_age)}.", "/job/list"))
    if facts.dead:
        jobs = "1 job was" if facts.dead == 1 else f"{figure(facts.dead)} jobs were"
        found.append(Fault(f"{jobs} given up in the last hour.", "/job/list"))
    return found


def _of_servers(facts: Facts) -> list[Fault]:
    found = []
    if facts.cache_usable is False:
        found.append(Fault("The cache is not in use: its server is away, or not trusted yet.", "/cache"))
    if facts.limits_shared is False:
        found.append(Fault("Rate limits are counted in each process, not together.", "/limits"))
    return found
