"""Which workers live: each says so again and again, in Redis/Valkey.

A sorted set has each worker with the moment, by the server's clock, at which it is late, and a hash what it last said
of itself. So whoever asks needs one round trip, whatever else is in that server. Beside that stand ARQ's own keys: one
for each worker, and the one that `arq --check` asks for. Workers of releases before have only these.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from app.core.utils.queue.serialization import dumps, loads
from app.core.utils.queue.table import DEFAULT_QUEUE, LONG_QUEUE
from app.core.utils.redis_link import AnyLink, Script

WORKERS: Final = "slipway:workers"
TOLD: Final = "slipway:workers:told"
BEATS: Final = 3  # in the interval within which a worker says that it lives
UNEVEN: Final = 0.05  # by so much of itself, the pause between two of them can be longer or shorter
MISSED: Final = 2  # beats after which it is late
GRACE: Final = 1.0  # seconds more until it is, and until ARQ's keys expire
REMEMBERED_MS: Final = 600_000  # for which one that is late, and has not said that it stops, is still told of

# KEYS: the set, the hash, the worker's own key, the shared one. ARGV: name, what it says, the same for the shared key,
# the same in full, ms until it is late, ms for which it is remembered then, ms until ARQ's keys expire.
_BEAT: Final = Script(
    """
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function text(number) return string.format('%.0f', number) end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[7])
redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[7])
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

_QUEUES: Final = (DEFAULT_QUEUE, LONG_QUEUE)  # of which ARQ's shared keys are looked at
_ARQ_SECONDS: Final = 31.0  # until these expire, as the workers of this repository have it
_LISTED: Final = "listed"  # said in a shared key: whoever said so is in the set


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker, as it last said of itself. What it did not say, or not in this form, is None or empty.

    Attributes:
        running: how many jobs it had. Which ones, the table says: `app.crud.crud_job_statistics.running_by_worker`.
        max_jobs: how many it does at once.
        functions: the names of those that it knows.
        heard_seconds: for how long it has not been heard of.
        late: whether that is longer than it should be: it was killed, or hangs, or cannot take jobs.
        is_older: whether it is of a release before, or ARQ's own, which say only that one of their queue lives.
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
    is_older: bool = False


async def beat(link: AnyLink, name: str, shared_key: str, interval: float, told: Mapping[str, Any]) -> None:
    """Says that this process is a worker and lives. One round trip. Raises: LinkError.

    Args:
        name: the worker's.
        shared_key: ARQ's, for all of its queue.
        interval: seconds in which it says so `BEATS` times. It is late when it has missed two.
        told: `running`, `queue`, `started_at` (ISO 8601), `max_jobs` and `functions`.
    """
    short = {key: told[key] for key in ("running", "queue", "started_at")}
    late = MISSED * interval / BEATS * (1 + UNEVEN) + GRACE
    await link.call(
        _BEAT,
        (WORKERS, TOLD, _own_key(shared_key, name), shared_key),
        name,
        dumps(short),
        dumps(short | {"worker": name, _LISTED: True}),
        dumps({**told, "host": socket.gethostname(), "pid": os.getpid(), "late": late}),
        int(late * 1000),
        REMEMBERED_MS,
        int((interval + GRACE) * 1000),
    )


async def forget(link: AnyLink, name: str, shared_key: str) -> None:
    """A worker has stopped, and is not to be told of any more. Raises: LinkError."""
    await link.run(("DEL", _own_key(shared_key, name)), ("ZREM", WORKERS, name), ("HDEL", TOLD, name))


async def living_workers(link: AnyLink) -> list[WorkerSeen]:
    """The workers that live, by queue and name; and those that have not been heard of for less than some 10 minutes.

    One round trip. Those of releases before are one for each of the usual queues, where no other lives: while servers
    are updated one after the other, jobs do not wait. Raises: LinkError.
    """
    shared = [(command, f"{queue}:health-check") for queue in _QUEUES for command in ("GET", "PTTL")]
    reply, *beats = await link.run((SEEN, SEEN_KEYS, REMEMBERED_MS), *shared)
    seen = workers_in(reply)
    alive = {worker.queue for worker in seen if not worker.late}
    older = (_older(queue, *beat) for queue, *beat in zip(_QUEUES, beats[::2], beats[1::2], strict=True))
    return _sorted([*seen, *(worker for worker in older if worker is not None and worker.queue not in alive)])


def workers_in(reply: list[Any]) -> list[WorkerSeen]:
    """What the script `SEEN` has answered."""
    now, *rest = reply
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return _sorted([_seen(name.decode(errors="replace"), float(late_at), said, now) for name, late_at, said in triples])


def _sorted(found: list[WorkerSeen]) -> list[WorkerSeen]:
    return sorted(found, key=lambda worker: (worker.queue, worker.name))


def _own_key(shared_key: str, name: str) -> str:
    return f"{shared_key}:{name}"


def _facts(said: bytes) -> dict[str, Any]:
    try:
        told = loads(said)
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {}


def _older(queue: str, said: bytes | None, left_ms: int) -> WorkerSeen | None:
    """By ARQ's shared key; None where there is none, or it is of a worker that is in the set, or was until it ended."""
    facts = _facts(said or b"")
    if said is None or _LISTED in facts:
        return None
    return WorkerSeen(
        name=str(facts.get("worker") or f"ARQ's own of {queue}"),
        queue=queue,
        running=_whole(facts.get("running")) or 0,
        max_jobs=None,
        functions=(),
        host="",
        pid=None,
        started_at=_moment(facts.get("started_at")),
        heard_seconds=max(0.0, _ARQ_SECONDS - left_ms / 1000),
        late=False,
        is_older=True,
    )


def _seen(name: str, late_at: float, said: bytes, now: float) -> WorkerSeen:
    facts = _facts(said)
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
