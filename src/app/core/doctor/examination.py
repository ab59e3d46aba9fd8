"""All checks, side by side, each with a limit on the time it takes."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from app.core.config import (
    PostgresSettings,
    ProxySettings,
    RedisQueueSettings,
    SettingsGroup,
    SMTPSettings,
)
from app.core.doctor.configuration import check_configuration
from app.core.doctor.connections import Fleet
from app.core.doctor.database import check_database
from app.core.doctor.finding import Finding, failed
from app.core.doctor.mail import check_mail
from app.core.doctor.proxies import check_proxies
from app.core.doctor.replica import check_replica
from app.core.doctor.schema import check_schema_version
from app.core.doctor.valkey import check_valkey, servers_of
from app.core.doctor.workers import check_workers

LIMIT: Final = 5.0  # seconds for one check


async def examine(settings: SettingsGroup, fleet: Fleet) -> list[Finding]:
    """What all checks find that these settings ask for, in the order in which they are told.

    Args:
        settings: whose groups say what there is to look at.
        fleet: what is to run.
    """
    checks: list[tuple[str, Awaitable[list[Finding]]]] = []
    found = check_configuration(settings)
    if isinstance(settings, ProxySettings):
        found += check_proxies(settings)
    if isinstance(settings, PostgresSettings):
        checks.append(("database", check_database(settings, fleet)))
        checks.append(("schema", check_schema_version(settings)))
        checks.append(("replica", check_replica(settings, fleet)))
    checks += [(used.name, check_valkey(used)) for used in servers_of(settings)]
    if isinstance(settings, RedisQueueSettings):
        checks.append(("workers", check_workers(settings, fleet)))
    if isinstance(settings, SMTPSettings):
        checks.append(("mail", check_mail(settings)))
    for findings in await asyncio.gather(*(_bounded(name, check) for name, check in checks)):
        found += findings
    return found


async def _bounded(name: str, check: Awaitable[list[Finding]]) -> list[Finding]:
    try:
        async with asyncio.timeout(LIMIT):
            return await check
    except TimeoutError:
        return [failed(name, f"no answer within {LIMIT:g} s", "see whether the server hangs; if it does, restart it")]
    except Exception as error:  # The other checks are still worth reading. Its words could hold anything.
        return [failed(name, f"it cannot be judged: {type(error).__name__}", "see whether it is what the settings say")]
