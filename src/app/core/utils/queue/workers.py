"""Which workers live: each says so again and again, in Redis/Valkey.

A sorted set has each worker with the moment, by the server's clock, at which it is late, and a hash what it last said
of itself. So whoever asks needs one round trip, whatever else is in that server. Beside that stand ARQ's own keys: one
for each worker, and the one that `arq --check` asks for.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from app.core.utils.queue.serialization import dumps, loads
from app.core.utils.redis_link import AnyLink, Script

WORKERS: Final = "slipway:workers"
TOLD: Final = "slipway:workers:told"
GRACE: Final = 1.0  # seconds after the interval until a worker is late
REMEMBERED_MS: Final = 600_000  # for which one that is late, and has not said that it stops, is still told of

# KEYS: the set, the hash, the worker's own key, the shared one. ARGV: name, what it says, the same for the shared key,
# the same in full, ms until it is late, ms for which it is remembered then.
_BEAT: Final = Script(
    """
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[5])
redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[5])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(now - ARGV[6]))) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('ZADD', KEYS[1], text(now + ARGV[5]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
local keep = ARGV[5] + ARGV[6]
for i = 1, 2 do
  if redis.call('PTTL', KEYS[i]) < keep then redis.call('PEXPIRE', KEYS[i], text(keep)) end
end
"""
)

# KEYS: the set, the hash. ARGV: ms for which one that is late is remembered. The server's time, and three for each
# worker: its name, when it is late, what it said. It writes nothing.
SEEN: Final = Script(
    """
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)
local since = string.format('%.0f', now - ARGV[1])
local found = redis.call('ZRANGEBYSCORE', KEYS[1], since, '+inf', 'WITHSCORES')
local reply = {now}
for i = 1, #found, 2 do
  reply[#reply + 1] = found[i]
  reply[#reply + 1] = found[i + 1]
  reply[#reply + 1] = redis.call('HGET', KEYS[2], found[i]) or ''
end
return reply
"""
)
SEEN_KEYS: Final = (WORKERS, TOLD)


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker, as it last said of itself. What it did not say, or not in this form, is None or empty.

    Attributes:
        running: how many jobs it had. Which ones, the table says: `app.crud.crud_job_statistics.running_by_worker`.
        max_jobs: how many it does at once.
        functions: the names of those that it knows.
        heard_seconds: for how long it has not been heard of.
        late: whether that is longer than it should be: it was killed, or hangs, or cannot take jobs.
    """

    name: str
    queue: str
    running: int
    max_jobs: int | None
    functions: tuple[str, ...]
    host: str
    pid: int | None
    started_at: datetime | None
    heard_seconds: float
    late: bool


async def beat(link: AnyLink, name: str, shared_key: str, interval: float, told: Mapping[str, Any]) -> None:
    """Says that this process is a worker and lives. One round trip. Raises: LinkError.

    Args:
        name: the worker's.
        shared_key: ARQ's, for all of its queue.
        interval: seconds within which it says so again.
        told: `running`, `queue`, `started_at` (ISO 8601), `max_jobs` and `functions`.
    """
    short = {key: told[key] for key in ("running", "queue", "started_at")}
    late = interval + GRACE
    await link.call(
        _BEAT,
        (WORKERS, TOLD, _own_key(shared_key, name), shared_key),
        name,
        dumps(short),
        dumps(short | {"worker": name}),
        dumps({**told, "host": socket.gethostname(), "pid": os.getpid(), "late": late}),
        int(late * 1000),
        REMEMBERED_MS,
    )


async def forget(link: AnyLink, name: str, shared_key: str) -> None:
    """A worker has stopped, and is not to be told of any more. Raises: LinkError."""
    await link.run(("DEL", _own_key(shared_key, name)), ("ZREM", WORKERS, name), ("HDEL", TOLD, name))


async def living_workers(link: AnyLink) -> list[WorkerSeen]:
    """The workers that live, by queue and name; and those that have not been heard of for less than some 10 minutes.

    One round trip. Those without a database are not among them: they are ARQ's own. Raises: LinkError.
    """
    return workers_in(await link.call(SEEN, SEEN_KEYS, REMEMBERED_MS))


def workers_in(reply: list[Any]) -> list[WorkerSeen]:
    """What the script `SEEN` has answered."""
    now, *rest = reply
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    found = [_seen(name.decode(errors="replace"), float(late_at), said, now) for name, late_at, said in triples]
    return sorted(found, key=lambda worker: (worker.queue, worker.name))


def _own_key(shared_key: str, name: str) -> str:
    return f"{shared_key}:{name}"


def _seen(name: str, late_at: float, said: bytes, now: float) -> WorkerSeen:
    try:
        told = loads(said)
    except ValueError:
        told = None
    facts: dict[str, Any] = told if isinstance(told, dict) else {}
    functions = facts.get("functions")
    return WorkerSeen(
        name=name,
        queue=str(facts.get("queue", "")),
        running=_whole(facts.get("running")) or 0,
        max_jobs=_whole(facts.get("max_jobs")),
        functions=tuple(map(str, functions)) if isinstance(functions, list) else (),
        host=str(facts.get("host", "")),
        pid=_whole(facts.get("pid")),
        started_at=_moment(facts.get("started_at")),
        heard_seconds=max(0.0, (now - late_at) / 1000 + _seconds(facts.get("late"))),
        late=late_at <= now,
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
