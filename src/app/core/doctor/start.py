"""The part of the doctor that a start in production runs: mistakes that no waiting mends end the process.

A server that is away is none: the app starts, and is not ready until it is back.
"""

import asyncio
import sys
from collections.abc import Awaitable
from typing import Final

import structlog
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from app.core.config import EnvironmentOption, PostgresSettings, SettingsError, SettingsGroup, environment_of
from app.core.doctor.connections import connections_of_web
from app.core.doctor.database import certain_faults
from app.core.doctor.finding import Finding, Outcome
from app.core.doctor.replica import certain_faults_of_replica
from app.core.doctor.valkey import certain_faults_of_valkey, servers_of

LIMIT: Final = 2.0  # seconds for all of them together
_CANCELLED: Final = 0.3  # seconds that those get who did not come to an end

log = structlog.stdlib.get_logger("slipway.start")


async def refuse_certain_faults(settings: SettingsGroup, connections: int | None = None) -> None:
    """Passes outside of production. What works, but not as it should, is logged as a warning.

    Args:
        settings: of the app or worker that starts.
        connections: the most that this process may hold to PostgreSQL, if it is no web process.

    Raises: SettingsError with a line for each fault, which names the variable and what to do.
    """
    if environment_of(settings) is not EnvironmentOption.PRODUCTION:
        return
    found = await _found_in_time(settings, connections)
    for finding in found:
        if finding.outcome is not Outcome.OK and not finding.is_certain:
            log.warning("not as it should be", check=finding.check, what=finding.text, remedy=finding.remedy)
    faults = [f"{fault.check}: {fault.text}. Remedy: {fault.remedy}." for fault in found if fault.is_certain]
    if faults:
        raise SettingsError("\n".join(faults))


async def _found_in_time(settings: SettingsGroup, connections: int | None) -> list[Finding]:
    checks: list[Awaitable[list[Finding]]] = [certain_faults_of_valkey(used) for used in servers_of(settings)]
    if isinstance(settings, PostgresSettings):
        checks.append(certain_faults(settings, connections or connections_of_web(settings)))
        checks.append(certain_faults_of_replica(settings))
    tasks = [asyncio.ensure_future(check) for check in checks]
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=LIMIT)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=_CANCELLED)
    # Whatever failed was away, or has said something that nobody can judge now: `/ready` goes on asking.
    return [
        finding
        for task in tasks
        if task.done() and not task.cancelled() and task.exception() is None
        for finding in task.result()
    ]


def say_in_short_why_it_does_not_start(app: FastAPI) -> None:
    """Has the server log the lines of a SettingsError, where Starlette would give it the whole traceback."""
    lifespan = app.router.lifespan

    async def in_short(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_short(message: Message) -> None:
            reason = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(reason, SettingsError):
                message = {**message, "message": str(reason)}
            await send(message)

        await lifespan(scope, receive, send_in_short)

    app.router.lifespan = in_short  # type: ignore[method-assign]
