"""ARQ's worker, with the table of jobs as the truth.

The command `arq` builds `arq.worker.Worker`; importing anything of `app.core.worker` puts this one in its place
(docs/decisions/0014-the-table-is-the-truth-about-jobs.md). Its options, signals and hooks are ARQ's.
"""

import asyncio
import inspect
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, tzinfo
from secrets import token_hex
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final

import arq
import arq.worker
import structlog
from arq.worker import Worker, func

from app.core.config import PostgresSettings, SettingsGroup, environment_of, get_settings
from app.core.db.engine import DatabaseUnavailable
from app.core.db.schema_version import explain_schema_error
from app.core.events import Subscription
from app.core.logger import configure_logging
from app.core.utils import queue
from app.core.utils.queue import workers
from app.core.utils.queue.functions import KnownFunctions
from app.core.utils.queue.metrics import RUNNING
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import LinkError
from app.core.worker.attempt import Attempt
from app.core.worker.claims import LEASE, Claimed, renew, to_cancel
from app.core.worker.crons import Crons
from app.core.worker.intake import Intake
from app.core.worker.metrics_server import metrics_served
from app.core.worker.opened import Opened, OwnSession, open_worker
from app.core.worker.schedule import ZonedCronJob
from app.core.worker.upkeep import Upkeep

ROUND: Final = 1.0  # seconds between two rounds of upkeep, and two looks at what is to be cancelled
RENEWALS: Final = 3  # per lease
PAUSE_WITHOUT: Final = 1.0  # seconds between two looks for jobs while the database, or Redis/Valkey, is away
RECONCILE_LIMIT: Final = 600.0  # seconds, for millions of jobs
LAST_SECONDS: Final = 5.0  # that jobs have, once they were cancelled, to be put back

Action = Callable[[], Awaitable[None]]
log = structlog.stdlib.get_logger("slipway.worker")


def use_durable_worker() -> None:
    """Has the command `arq` run `DurableWorker`."""
    arq.worker.Worker = arq.Worker = DurableWorker  # type: ignore[misc]  # a class is a name, to mypy


def _with_subscriptions(options: inspect.Signature) -> inspect.Signature:
    own = inspect.Parameter("subscriptions", inspect.Parameter.KEYWORD_ONLY, default=())
    return options.replace(parameters=[*options.parameters.values(), own])


class DurableWorker(Worker):
    """Runs jobs that are rows. Without `PostgresSettings` it is ARQ's own."""

    __signature__ = _with_subscriptions(inspect.signature(Worker))  # ARQ passes on the settings that are in it.

    def __init__(self, *args: Any, subscriptions: Sequence[Subscription] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._subscriptions = subscriptions
        given = inspect.signature(Worker).bind(*args, **kwargs).arguments
        self._registered = SimpleNamespace(  # ARQ keeps the last one of several functions with one name.
            functions=[func(function) for function in given.get("functions", ())],
            cron_jobs=self.cron_jobs,
            queue_name=self.queue_name,
        )
        KnownFunctions([self._registered])
        # ARQ's default is the offset that the system's zone has now, which is another one after a change of clocks.
        self._zone: tzinfo | None = given.get("timezone")
        self.name = f"{socket.gethostname()}:{os.getpid()}:{token_hex(3)}"
        self.attempts: dict[str, Attempt] = {}
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._opened: Opened | None = None
        self._transport: Transport
        self._upkeep: Upkeep
        self._intake: Intake
        self._session: OwnSession
        self._is_started = False
        self._renew_at = 0.0  # on the monotonic clock
        self._stack = AsyncExitStack()
        self._unstarted: list[Claimed] = []
        self._companions: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._complained: set[str] = set()

    async def main(self) -> None:
        """Works until it is cancelled, or, with `burst`, until nothing is due."""
        settings: SettingsGroup = get_settings()
        configure_logging(environment_of(settings))  # ARQ's command has set up logging of its own by now.
        if not settings.inherits(PostgresSettings):
            self.cron_jobs = [ZonedCronJob(**vars(job), zone=self._zone) for job in self.cron_jobs]
            return await super().main()
        opened = await self._stack.enter_async_context(open_worker(get_settings(), self.max_jobs, self._subscriptions))
        self._stack.enter_context(metrics_served(settings))
        self._stack.enter_context(queue.known_functions([self._registered]))
        return await self.work(opened)

    async def work(self, opened: Opened) -> None:
        """The same, with what is open already."""
        self._opened = opened
        self._transport = opened.transport
        self._session = opened.session
        self._pool = opened.pool
        self.ctx["redis"] = opened.pool
        unknown_hours = get_settings().JOB_UNKNOWN_HOURS
        self._upkeep = Upkeep(
            opened.transport, opened.session, self.queue_name, self.functions, self.max_tries, unknown_hours * 3600
        )
        self._intake = Intake(opened, self._upkeep, self.queue_name, list(self.functions), self.name)
        crons = Crons(self.cron_jobs, self.queue_name, self._zone)
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._is_started = True
        log.info("worker started", worker=self.name, queue=self.queue_name, functions=sorted(self.functions))
        self._accompany("leases", self._keep_leases, ROUND)
        if not self.burst:
            self._accompany("heartbeat", self._beat, self.health_check_interval / workers.BEATS, uneven=workers.UNEVEN)
            self._upkeep.watch()
            self._accompany("upkeep", self._upkeep.round, ROUND, limit=LEASE)
            self._accompany("reconciler", self._upkeep.reconcile, ROUND, limit=RECONCILE_LIMIT)
            self._accompany("cron", crons.round, ROUND / 4)
        while await self._start_some():
            pass

    async def close(self) -> None:
        """Waits for what still runs, which was cancelled by now, and closes everything."""
        if self._opened is None:
            await self._stack.aclose()
            return await super().close()
        if not self._handle_signals:
            self.handle_sig(signal.SIGUSR1)
        for task in self.tasks.values():  # Whoever ends in another way than by a signal has them still running.
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=LAST_SECONDS)
        while self._unstarted:
            await self._intake.put_back(self._unstarted.pop())
        with suppress(DatabaseUnavailable):
            await self._intake.give_up_what_is_in_doubt([])
        for companion in self._companions:
            companion.cancel()
        if self._companions:
            await asyncio.wait(self._companions, timeout=LAST_SECONDS)
        try:
            if self.on_shutdown and self._is_started:
                await self.on_shutdown(self.ctx)
        finally:
            with suppress(LinkError):
                await workers.forget(self._transport.link, self.name, self.health_check_key)
            self._opened = self._pool = None
            await self._stack.aclose()
            log.info("worker stopped", worker=self.name)
        return None

    # ---- Jobs ----

    async def _start_some(self) -> bool:
        """Starts what is due and waits a moment, or for a job to end. Returns: whether there is more to come."""
        self._wake.clear()
        free = self.max_jobs - len(self.attempts)
        jobs: list[Claimed] = []
        pause = self.poll_delay_s
        if free and self.allow_pick_jobs:
            taking = asyncio.create_task(self._intake.take(free, self.attempts, from_table=self.burst))
            try:
                jobs = await asyncio.shield(taking)
                self._complained.discard("jobs")
            except asyncio.CancelledError:
                with suppress(Exception):
                    self._unstarted += await taking
                raise
            except Exception as error:  # The next look may go better, and nobody else would look.
                if self.burst:
                    raise
                await self._complain("jobs", error)
                pause = PAUSE_WITHOUT
        for job in jobs:
            self._start(job)
        if self.burst and not self.attempts and not jobs:
            return False
        if free == 0 or not self.allow_pick_jobs:
            pause = PAUSE_WITHOUT
        if len(jobs) < free or not free:  # Otherwise there is probably more.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
        else:
            await asyncio.sleep(0)
        return True

    def _start(self, job: Claimed) -> None:
        if (earlier := self.attempts.get(job.id)) is not None:  # It was lost while nothing here could run.
            earlier.lose()
        attempt = self.attempts[job.id] = Attempt(job, self.functions[job.function], self, self._session)
        self.tasks[job.id] = attempt.start(self._note_end)
        RUNNING.set(len(self.attempts))

    def _note_end(self, attempt: Attempt) -> None:
        if attempt.task is not None and attempt.task.cancelled():
            self._unstarted.append(attempt.job)
        if self.attempts.get(attempt.job.id) is attempt:
            del self.attempts[attempt.job.id], self.tasks[attempt.job.id]
        RUNNING.set(len(self.attempts))
        self._wake.set()

    # ---- Beside them ----

    def _accompany(
        self, name: str, action: Action, pause: float, limit: float = LEASE / 6, uneven: float = 0.2
    ) -> None:
        """Has this done again and again, whatever comes of it, until the worker is closed.

        Args:
            name: what the log calls it.
            action: what is done.
            pause: seconds from one time to the next, longer or shorter by `uneven` of itself.
            limit: seconds that it may take. Leases are to have several tries before they end.
        """

        async def keep_doing() -> None:
            while True:
                try:
                    async with asyncio.timeout(limit):
                        await action()
                    self._complained.discard(name)
                except Exception as error:
                    await self._complain(name, error)
                await asyncio.sleep(pause * random.uniform(1 - uneven, 1 + uneven))  # noqa: S311 -- no secret

        self._companions.append(asyncio.create_task(keep_doing(), name=name))

    async def _complain(self, what: str, error: Exception) -> None:
        if what not in self._complained:  # One line per outage.
            why = await explain_schema_error(error) or repr(error.__cause__ or error)
            log.warning("worker is held up", by=what, why=why)
        self._complained.add(what)

    async def _keep_leases(self) -> None:
        """Renews what this worker has, stops what it has lost, and cancels what is to be cancelled."""
        held = dict(self.attempts)
        if not held:
            return
        async with self._session() as db:
            for job_id in await to_cancel(db, list(held)):
                held[job_id].cancel()
            if monotonic() < self._renew_at:
                return
            kept = await renew(db, {job_id: attempt.job.runs for job_id, attempt in held.items()})
            self._renew_at = monotonic() + LEASE / RENEWALS
        for job_id in held.keys() - kept:
            held[job_id].lose()

    async def _beat(self) -> None:
        """Says that this worker lives, while it can take jobs."""
        if not self._transport.link.up or "jobs" in self._complained:
            return
        told = {
            "running": len(self.attempts),
            "queue": self.queue_name,
            "started_at": self._started_at,
            "max_jobs": self.max_jobs,
            "functions": sorted(self.functions),
        }
        interval = float(self.health_check_interval)
        await workers.beat(self._transport.link, self.name, self.health_check_key, interval, told)
