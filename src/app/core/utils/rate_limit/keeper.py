"""What the limiter knows beyond one request, kept current by tasks of each process: the rules, and how many share them.

A change is announced over pub/sub, so that every process has it at once; and every second each looks whether there was
one, since an announcement can be lost, and the database changed past us.
"""

import asyncio
import random
from contextlib import suppress
from time import monotonic
from typing import Final
from uuid import uuid4

import structlog

from app.core.utils.rate_limit.limiter import Limiter
from app.core.utils.rate_limit.metrics import IN_PROCESS, PROCESSES, RULES_FAILED
from app.core.utils.rate_limit.rules import Rule, fingerprint, load_rules
from app.core.utils.redis_link import LinkError, Script
from app.core.utils.redis_link.subscription import Subscription

CHANNEL: Final = "slipway:rate_limit_rules"
LOOK: Final = 1.0  # seconds between two looks whether the rules are still the same
LOG_EVERY: Final = 60.0  # seconds between two lines about the same outage
KEPT: Final = 60.0  # seconds that what was counted in process is kept after the last time it was needed
CLOSE_SECONDS: Final = 2.0
PROCESSES_KEY: Final = "rate:processes"
GONE: Final = 5_000_000  # microseconds after which a process that has not been heard is not counted

# KEYS: the processes. ARGV: this one, and after how long one is gone. Returns how many there are.
_HERE: Final = Script("""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2]) / 1000))
return redis.call('ZCARD', KEYS[1])
""")

log = structlog.stdlib.get_logger("slipway.rate_limit")


class Keeper:
    """Keeps a limiter's rules current, as long as it is open."""

    def __init__(self, limiter: Limiter, url: str, default: Rule | None, *, stored: bool) -> None:
        """
        Args:
            limiter: whose rules they are.
            url: where changes are announced.
            default: the rule beside those in the database.
            stored: whether there is a database with rules at all.
        """
        self._limiter = limiter
        self._default = default
        self._stored = stored
        self._me = uuid4().hex
        self._known = ""  # the rules' fingerprint
        self._reading = asyncio.Lock()
        self._wake = asyncio.Event()
        self._closing = False
        self._complained = False
        self._seen = 0  # decisions in process, at the last tick
        self._needed_at = self._logged_at = -LOG_EVERY
        self._subscription = Subscription(url, CHANNEL, self._wake.set) if stored else None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Reads the rules, if it can, and begins to keep them current."""
        await self._tick()
        self._task = asyncio.create_task(self._run())
        if self._subscription is not None:
            await self._subscription.open()

    async def close(self) -> None:
        """Stops."""
        self._closing = True
        self._wake.set()
        if self._subscription is not None:
            await self._subscription.close()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            self._task.cancel()  # What it waits for is not worth more.
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        with suppress(LinkError):
            await self._limiter.link.call(_LEAVE, PROCESSES_KEY, self._me)

    async def changed(self) -> None:
        """The rules were changed by this process: it goes by them at once, and tells the others to."""
        await self._read()
        try:
            await self._limiter.link.send("PUBLISH", CHANNEL, self._me)
        except LinkError as error:
            log.warning("rate limits: a change is not announced, others notice it within a second", why=repr(error))

    async def _run(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK * random.uniform(0.8, 1.2)):  # noqa: S311 -- no secret
                    await self._wake.wait()
            self._wake.clear()
            if not self._closing:
                await self._tick()

    async def _tick(self) -> None:
        if self._stored:
            await self._read()
        if self._closing:
            return
        with suppress(LinkError):
            count = await self._limiter.link.call(_HERE, PROCESSES_KEY, self._me, GONE)
            self._limiter.in_process.processes = count
            PROCESSES.set(count)
        self._look_at_the_outage()

    async def _read(self) -> None:
        """Reads the rules if they have changed. Keeps what it has while the database is away."""
        async with self._reading:
            try:
                if (found := await fingerprint()) != self._known:
                    self._limiter.rules = await load_rules(self._default)
                    self._known = found
                    log.info("rate limits read")
                self._complained = False
            except Exception as error:  # Whatever it is, the next look may go better, and nobody else would look.
                if self._closing:
                    return
                RULES_FAILED.inc()
                if not self._complained:
                    log.warning("rate limits cannot be read", why=repr(error.__cause__ or error))
                self._complained = True

    def _look_at_the_outage(self) -> None:
        local, now = self._limiter.in_process, monotonic()
        in_process, self._seen = local.decisions - self._seen, local.decisions
        IN_PROCESS.set(in_process > 0)
        if in_process:
            self._needed_at = now
            if now - self._logged_at >= LOG_EVERY:
                self._logged_at = now
                log.warning("rate limits are counted in process", processes=local.processes)
        elif now - self._needed_at > KEPT:
            local.forget()


# KEYS: the processes. ARGV: this one.
_LEAVE: Final = Script("return redis.call('ZREM', KEYS[1], ARGV[1])")
