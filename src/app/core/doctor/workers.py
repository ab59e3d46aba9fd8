"""The workers: does one live?"""

from collections.abc import Iterator
from typing import Any, Final

from app.core.config import RedisQueueSettings
from app.core.doctor.connections import Fleet
from app.core.doctor.finding import Finding, failed, ok, warning
from app.core.doctor.valkey_facts import Asked, connected
from app.core.utils.queue.serialization import loads
from app.core.utils.queue.table import DEFAULT_QUEUE, LONG_QUEUE

_SETTINGS: Final = "src.app.core.worker.settings"
_MOST_KEYS: Final = 200_000  # to look through for the workers' own; with more, one worker stands for all


async def check_workers(settings: RedisQueueSettings, fleet: Fleet) -> list[Finding]:
    """A finding for each of the two queues; none when Redis/Valkey is away, which is said elsewhere."""
    try:
        async with connected(settings.redis_queue_url) as server:
            beats = {queue: await _beats(server, f"{queue}:health-check") for queue in (DEFAULT_QUEUE, LONG_QUEUE)}
    except Exception:  # redis-py's kinds
        return []
    return list(_judge(beats, fleet))


def _judge(beats: dict[str, list[tuple[dict[str, Any], float]]], fleet: Fleet) -> Iterator[Finding]:
    for queue, kind, absent in ((DEFAULT_QUEUE, "WorkerSettings", failed), (LONG_QUEUE, "LongWorkerSettings", warning)):
        check = f"workers: {queue}"
        living = beats[queue]
        if not living:
            yield absent(check, "none lives, and jobs wait", f"start one: `arq {_SETTINGS}.{kind}`")
            continue
        # A heartbeat expires a second after the next one is due at the latest.
        age = max(0.0, fleet.heartbeat + 1 - max(seconds for _, seconds in living))
        running = sum(told.get("running", 0) for told, _ in living)
        yield ok(check, f"{len(living)} seen, the last {age:.0f} s ago, with {running} jobs")


async def _beats(server: Asked, key: str) -> list[tuple[dict[str, Any], float]]:
    """What the living said last, and the seconds until that expires."""
    found = [beat for name in await _own_keys(server, key) if (beat := await _beat(server, name))]
    if not found and (shared := await _beat(server, key)):
        found = [shared]
    return found


async def _own_keys(server: Asked, key: str) -> list[str]:
    size = await server.call_if_allowed("DBSIZE")
    if size is None or size > _MOST_KEYS:
        return []
    names: set[str] = set()
    cursor = "0"
    while True:
        answer = await server.call_if_allowed("SCAN", cursor, "MATCH", f"{key}:*", "COUNT", 5000)
        if answer is None:
            return []
        cursor = answer[0].decode()
        names |= {name.decode(errors="replace") for name in answer[1]}
        if cursor == "0":
            return sorted(names)


async def _beat(server: Asked, name: str) -> tuple[dict[str, Any], float] | None:
    said, left = await server.call("GET", name), await server.call("PTTL", name)
    if said is None:
        return None
    try:
        told = loads(said)
    except ValueError:  # ARQ's own worker, where there is no PostgreSQL, says it in words.
        told = None
    return (told if isinstance(told, dict) else {}), left / 1000
