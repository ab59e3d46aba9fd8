"""How many connections to PostgreSQL a process may hold, and what runs in all."""

from dataclasses import dataclass
from typing import Final

from app.core.config import PostgresSettings

PROBES: Final = 2  # of a web process, for `/ready`: `core/lifespan.py`
WORKERS_OWN: Final = 4  # of a worker, which no job can take away: `core/worker/opened.py`


def connections_of_web(settings: PostgresSettings) -> int:
    """The most that one web process holds to the primary."""
    return settings.POSTGRES_POOL_SIZE + PROBES


def connections_of_worker(max_jobs: int) -> int:
    """The most that one worker holds, by how many jobs it does at once: each has one, and half of them one more."""
    return max_jobs + max_jobs // 2 + WORKERS_OWN


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is to run, on all machines together.

    Attributes:
        web: web processes.
        workers: workers of the usual queue.
        long_workers: workers of the queue of long jobs.
        max_jobs: what one worker does at once.
        long_max_jobs: what one of the long queue does.
        heartbeat: seconds after which a worker that lives has said so again.
    """

    web: int = 1
    workers: int = 1
    long_workers: int = 1
    max_jobs: int = 20
    long_max_jobs: int = 5
    heartbeat: float = 30.0

    def connections(self, settings: PostgresSettings) -> tuple[int, str]:
        """The most that all of them hold, and how that adds up."""
        parts = (
            (self.web, "web", connections_of_web(settings)),
            (self.workers, "worker", connections_of_worker(self.max_jobs)),
            (self.long_workers, "long worker", connections_of_worker(self.long_max_jobs)),
        )
        sum_of_all = sum(number * each for number, _, each in parts)
        return sum_of_all, " + ".join(f"{number} {what} x {each}" for number, what, each in parts if number)
