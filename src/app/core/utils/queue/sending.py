"""Writes jobs down in the caller's transaction, and sends them once it is committed (a transactional outbox)."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.commits import note_commit
from app.core.db.database import actions_after_commit, after_commit, open_transaction, reading
from app.core.exceptions.http_exceptions import Conflict
from app.core.tracing import current_traceparent
from app.core.utils.queue.functions import JobFunctionLike, check_arguments, resolve
from app.core.utils.queue.metrics import ENQUEUED
from app.core.utils.queue.serialization import dump_arguments, loads
from app.core.utils.queue.table import DEFAULT_QUEUE, LONGEST_ID, LONGEST_KEY, LONGEST_NAME
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import AnyLink, LinkError

ID_IS_TAKEN: Final = timedelta(hours=1)  # after the end of the job that had it; ARQ's `keep_result`
# An id that was given rather than drawn can be guessed: such a job is never shown to just anybody.
DRAWN_ID: Final = re.compile(r"[0-9a-f]{32}")

_ID = re.compile(rf"[!-~]{{1,{LONGEST_ID}}}")

Delay = int | float | timedelta | None

log = structlog.stdlib.get_logger("slipway.queue")


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What `enqueue` answers with.

    Attributes:
        job_id: the job's id.
        due: when it may start; None when the idempotency key has named an earlier job.
    """

    job_id: str
    due: datetime | None


class IdempotencyKeyReused(Conflict):
    text = "This idempotency key was used for something else."


class JobIdTaken(Exception):  # noqa: N818 -- a state
    """There is a job with this id already."""


# A dead letter is kept, under another id.
_FREE_ID = text(
    "WITH gone AS (DELETE FROM job WHERE id = :id AND state <> 'dead'"
    " AND (finished_at < clock_timestamp() - CAST(:taken AS interval) OR expires_at < clock_timestamp()))"
    " UPDATE job SET id = left(id, 120) || '~' || left(md5(random()::text), 6)"
    " WHERE id = :id AND state = 'dead' AND finished_at < clock_timestamp() - CAST(:taken AS interval)"
)
_FORGET_EXPIRED = text("DELETE FROM job WHERE idempotency_key = :key AND expires_at < clock_timestamp()")
_INSERT = text(
    "INSERT INTO job (id, queue, function, args, keywords, owner_id, idempotency_key, attempt,"
    " traceparent, created_at, run_after, start_before)"
    " SELECT :id, :queue, :function, CAST(:args AS json), CAST(:keywords AS json), :owner_id, :key, :attempt,"
    " :traceparent,"
    " now, coalesce(CAST(:until AS timestamptz), now + CAST(:delay AS interval)), now + CAST(:expires AS interval)"
    " FROM (SELECT clock_timestamp() AS now) AS clock ON CONFLICT DO NOTHING RETURNING id, run_after"
)
_BY_KEY = text("SELECT id, function, args, keywords FROM job WHERE idempotency_key = :key")

_transports: list[Transport] = []  # more than one where several apps run in a process, as in tests


async def enqueue(
    db: AsyncSession,
    function: JobFunctionLike,
    *args: Any,
    _job_id: str | None = None,
    _queue_name: str = DEFAULT_QUEUE,
    _defer_until: datetime | None = None,
    _defer_by: Delay = None,
    _expires: Delay = None,
    _job_try: int | None = None,
    _owner_id: int | None = None,
    _idempotency_key: str | None = None,
    _id_is_taken: timedelta = ID_IS_TAKEN,
    **kwargs: Any,
) -> Enqueued:
    """Has a function run by a worker, if and only if this transaction is committed.

    It is sent once that is done. When that fails, because Redis/Valkey is away or this process is killed, a worker
    finds it in the table within seconds.

    Args:
        db: the transaction.
        function: one of `WorkerSettings.functions`, or its name.
        args, kwargs: what it is called with, after `ctx`: whatever JSON can hold.
        _job_id: an id to give it.
        _queue_name: whose workers are to run it: `LONG_QUEUE` for what takes minutes.
        _defer_until, _defer_by: not before this moment, or not within so many seconds.
        _expires: not after so many seconds from now: it is then a dead letter.
        _job_try: how many attempts this is, if they begin with another one than the first.
        _owner_id: the user who may read it.
        _idempotency_key: a second call with the same one, for as long as the first one's job is kept, makes no job
            and answers with that one's id.
        _id_is_taken: for how long after a job's end its `_job_id` stays taken.

    Raises:
        JobIdTaken: a job has this `_job_id`, or had it until `_id_is_taken` ago.
        IdempotencyKeyReused: the earlier job is another function's, or has other arguments.
        UnknownFunction: no worker of this application has the function.
        TypeError, ValueError: JSON cannot hold the arguments as they are, the function cannot be called with them, or
            a name is too long.
        DatabaseUnavailable
    """
    if _defer_until is not None and _defer_by is not None:
        raise ValueError("Give _defer_until or _defer_by, not both.")
    if _defer_until is not None and _defer_until.tzinfo is None:
        raise ValueError("_defer_until needs a time zone.")
    name = await resolve(function, _queue_name, current_link())
    check_arguments(function, args, kwargs)
    arguments, keywords = dump_arguments(args, kwargs)
    values = {
        "id": _checked_id(_job_id) if _job_id is not None else uuid4().hex,
        "queue": _at_most(LONGEST_NAME, _queue_name, "The name of a queue"),
        "function": _at_most(LONGEST_NAME, name, "The name of a function"),
        "args": arguments,
        "keywords": keywords,
        "owner_id": _owner_id,
        "key": _at_most(LONGEST_KEY, _idempotency_key, "An idempotency key") if _idempotency_key is not None else None,
        "attempt": (_job_try or 1) - 1,
        "traceparent": current_traceparent(),
        "until": _defer_until,
        "delay": _as_timedelta(_defer_by) or timedelta(),
        "expires": _as_timedelta(_expires),
    }
    connection = await db.connection()
    if _job_id is not None:
        await connection.execute(_FREE_ID, {"id": _job_id, "taken": _id_is_taken})
    while (row := (await connection.execute(_INSERT, values)).one_or_none()) is None:
        if (earlier := await _earlier(connection, values)) is not None:
            return earlier
        if _job_id is not None:
            raise JobIdTaken(_job_id)
        # What was in the way has expired, or was removed in between.
    send_after_commit(db, _queue_name, row.id, row.run_after)
    ENQUEUED.labels(name).inc()
    return Enqueued(row.id, row.run_after)


async def enqueue_now(
    function: JobFunctionLike, *args: Any, _queue_name: str = DEFAULT_QUEUE, **options: Any
) -> Enqueued:
    """`enqueue` in the transaction that is open in this request, job or task; at once where none is open.

    So a handler that enqueues and then fails has enqueued nothing, and no second connection is needed.
    """
    if (caller := open_transaction()) is not None:
        with caller.sync_session.joined():
            return await enqueue(caller, function, *args, _queue_name=_queue_name, **options)
    async with reading() as db:
        enqueued = await enqueue(db, function, *args, _queue_name=_queue_name, **options)
    note_commit()
    if enqueued.due is not None:
        await send(_queue_name, enqueued.job_id, enqueued.due)
    return enqueued


async def send(queue: str, job_id: str, due: datetime) -> None:
    """Sends a job whose row is committed. That it cannot be sent is no error: a worker finds it in the table."""
    await _Batch({queue: {job_id: due}})()


class _Batch:
    """What one transaction has enqueued, by queue and id; called once that is committed."""

    def __init__(self, jobs: dict[str, dict[str, datetime]]) -> None:
        self.jobs = jobs

    async def __call__(self) -> None:
        if not _transports:
            return  # A script, say.
        try:
            for queue, due_by_id in self.jobs.items():
                await _transports[-1].send_all(queue, due_by_id)
        except LinkError as error:
            log.debug("jobs not sent yet", why=repr(error))


def send_after_commit(db: AsyncSession, queue: str, job_id: str, due: datetime) -> None:
    """Has a job sent once this transaction is committed, together with the others of it."""
    batch = next((action for action in actions_after_commit(db) if isinstance(action, _Batch)), None)
    if batch is None:
        batch = _Batch({})
        after_commit(db, batch)
    batch.jobs.setdefault(queue, {})[job_id] = due


def is_unsent(db: AsyncSession, job_id: str) -> bool:
    """Whether this transaction has enqueued the job, and is not committed."""
    actions = actions_after_commit(db, of_savepoint=False)
    batches = (action for action in actions if isinstance(action, _Batch))
    return any(job_id in due_by_id for batch in batches for due_by_id in batch.jobs.values())


def add(transport: Transport) -> None:
    """What is enqueued in this process is sent over this one from now on."""
    _transports.append(transport)


def current_link() -> AnyLink | None:
    """To the server that carries the ids; None where nothing is open, as in a script."""
    return _transports[-1].link if _transports else None


def current_transport() -> Transport:
    """The one that was opened last, of those that are open."""
    return _transports[-1]


def remove(transport: Transport) -> None:
    """It is open no more."""
    _transports.remove(transport)


async def _earlier(connection: AsyncConnection, values: dict[str, Any]) -> Enqueued | None:
    """The job that has this idempotency key, if there is one. Raises: IdempotencyKeyReused."""
    key = {"key": values["key"]}
    await connection.execute(_FORGET_EXPIRED, key)
    row = (await connection.execute(_BY_KEY, key)).one_or_none()
    if row is None:
        return None
    if [row.function, row.args, row.keywords] != [
        values["function"],
        *map(loads, (values["args"], values["keywords"])),
    ]:
        raise IdempotencyKeyReused
    return Enqueued(row.id, None)


def _checked_id(job_id: str) -> str:
    if not _ID.fullmatch(job_id):
        raise ValueError(f"A job's id is up to {LONGEST_ID} visible ASCII characters.")
    return job_id


def _at_most(longest: int, name: str, kind: str) -> str:
    if len(name) > longest or "\x00" in name:
        raise ValueError(f"{kind} is at most {longest} characters long and has no NUL in it.")
    return name


def _as_timedelta(delay: Delay) -> timedelta | None:
    return delay if delay is None or isinstance(delay, timedelta) else timedelta(seconds=delay)
