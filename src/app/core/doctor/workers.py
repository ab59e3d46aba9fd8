"""The workers: does one live?"""

from collections.abc import Iterator
from typing import Any, Final

from app.core.config import RedisQueueSettings
from app.core.doctor.connections import Fleet
from app.core.doctor.finding import Finding, failed, ok, warning
from app.core.doctor.valkey_facts import Asked, connected
from app.core.utils.queue.serialization import loads
from app.core.utils.queue.table import DEFAULT_QUEUE, LONG_QUEUE
from app.core.utils.queue.workers import REMEMBERED_MS, SEEN, SEEN_KEYS, WorkerSeen, workers_in

_SETTINGS: Final = "src.app.core.worker.settings"
_QUEUES: Final = ((DEFAULT_QUEUE, "WorkerSettings", failed), (LONG_QUEUE, "LongWorkerSettings", warning))


async def check_workers(settings: RedisQueueSettings, fleet: Fleet) -> list[Finding]:
    """A finding for each of the two queues; none when Redis/Valkey is away, which is said elsewhere."""
    try:
        async with connected(settings.redis_queue_url) as server:
            reply = await server.call_if_allowed("EVAL", SEEN.source, len(SEEN_KEYS), *SEEN_KEYS, REMEMBERED_MS)
            seen = workers_in(reply) if reply else []
            shared = {queue: await _shared_beat(server, queue, fleet) for queue, *_ in _QUEUES}
    except Exception:  # redis-py's kinds
        return []
    return list(_judge(seen, shared))


def _judge(seen: list[WorkerSeen], shared: dict[str, tuple[float, int] | None]) -> Iterator[Finding]:
    for queue, kind, absent in _QUEUES:
        check = f"workers: {queue}"
        of_queue = [worker for worker in seen if worker.queue == queue]
        beats = [(worker.heard_seconds, worker.running) for worker in of_queue if not worker.late]
        if not beats and (beat := shared[queue]):  # Of an older release, or ARQ's own.
            beats = [beat]
        if not beats:
            yield absent(check, "none lives, and jobs wait", f"start one: `arq {_SETTINGS}.{kind}`")
            continue
        age, running = min(seconds for seconds, _ in beats), sum(number for _, number in beats)
        late = sum(worker.late for worker in of_queue)
        missing = f"; {late} not heard of any more" if late else ""
        yield ok(check, f"{len(beats)} seen, the last {age:.0f} s ago, with {running} jobs{missing}")


async def _shared_beat(server: Asked, queue: str, fleet: Fleet) -> tuple[float, int] | None:
    """How many seconds ago any of a queue's workers has said that it lives, with how many jobs: by `arq --check`'s key.

    That expires a second after the next one is due at the latest.
    """
    key = f"{queue}:health-check"
    said, left = await server.call("GET", key), await server.call("PTTL", key)
    if said is None:
        return None
    try:
        told: Any = loads(said)
    except ValueError:  # ARQ's own worker, where there is no PostgreSQL, says it in words.
        told = None
    running = told.get("running", 0) if isinstance(told, dict) else 0
    return max(0.0, fleet.heartbeat + 1 - left / 1000), running
