"""The replica that answers what is only read."""

import asyncio
import time
from math import inf
from typing import Final

from app.core.config import PostgresSettings
from app.core.db.address import PostgresAddress
from app.core.db.engine import DatabaseUnavailable
from app.core.db.replica import REMEMBERED
from app.core.doctor.clock import judge_clock
from app.core.doctor.connections import Fleet
from app.core.doctor.database import away
from app.core.doctor.database_facts import DatabaseFacts, address_of, ask
from app.core.doctor.finding import Finding, failed, ok, warning

CHECK = "replica"
LONGEST_LAG: Final = 10.0  # seconds
PRIMARY_SECONDS: Final = 1.0  # to answer, while the replica does: half of what a start has for all its questions
CATCH_UP: Final = 1.0  # seconds, for what was on its way while both were asked


async def check_replica(settings: PostgresSettings, fleet: Fleet) -> list[Finding]:
    """Nothing without `POSTGRES_READ_URL`."""
    address = settings.postgres_read_address
    if address is None:
        return []
    try:
        facts, primary = await _ask_both(settings, address)
        if facts.is_replica and primary is not None:
            facts = await _given_time(settings, address, facts, primary)
    except DatabaseUnavailable as error:
        return [away(CHECK, address_of(address.url), error, "POSTGRES_READ_URL")]
    return [
        ok(CHECK, f"PostgreSQL {facts.version_name} at {facts.address}"),
        _judge_origin(facts, primary),
        *([judge_lag(facts, primary)] if facts.is_replica else []),
        _judge_encryption(facts),
        _judge_connections(settings, facts, fleet),
        judge_clock(CHECK, facts.clock),
    ]


async def certain_faults_of_replica(settings: PostgresSettings) -> list[Finding]:
    """What no waiting mends. Raises: DatabaseUnavailable."""
    address = settings.postgres_read_address
    return [] if address is None else [_judge_origin(*await _ask_both(settings, address))]


async def _ask_both(settings: PostgresSettings, address: PostgresAddress) -> tuple[DatabaseFacts, DatabaseFacts | None]:
    """The replica, and the primary, if that answers soon. Raises: DatabaseUnavailable when the replica is away."""
    asked = asyncio.ensure_future(_ask_primary(settings))
    try:
        return await ask(settings, address), await asked
    finally:
        asked.cancel()


async def _ask_primary(settings: PostgresSettings) -> DatabaseFacts | None:
    try:
        async with asyncio.timeout(PRIMARY_SECONDS):
            return await ask(settings)
    except (DatabaseUnavailable, TimeoutError):
        return None


async def _given_time(
    settings: PostgresSettings, address: PostgresAddress, facts: DatabaseFacts, primary: DatabaseFacts
) -> DatabaseFacts:
    """The replica's facts once it has come to where the primary was, or after a moment."""
    patience = time.monotonic() + CATCH_UP
    while _bytes_behind(facts, primary) and time.monotonic() < patience:
        await asyncio.sleep(0.1)
        facts = await ask(settings, address)
    return facts


def _bytes_behind(facts: DatabaseFacts, primary: DatabaseFacts) -> int:
    return max(0, (primary.position or 0) - (facts.position or 0))


def _judge_origin(facts: DatabaseFacts, primary: DatabaseFacts | None) -> Finding:
    check = f"{CHECK}: origin"
    if primary is None:
        return warning(check, "it cannot be compared to the primary, which does not answer", "see `database`")
    if None not in (primary.cluster, facts.cluster) and primary.cluster != facts.cluster:
        return failed(
            check,
            "it is no replica of the primary: its data are others",
            "have POSTGRES_READ_URL name a streaming replica of the primary, or leave it out",
            is_certain=True,
        )
    if not facts.is_replica:
        remedy = "have POSTGRES_READ_URL name a replica, or leave it out"
        return warning(check, "it is no replica but takes changes itself: it relieves nobody", remedy)
    return ok(check, "a replica of the primary" if facts.cluster else "a replica")


def judge_lag(facts: DatabaseFacts, primary: DatabaseFacts | None) -> Finding:
    """By what the primary has, not by what the replica was sent: a connection that is lost would look like none."""
    check = f"{CHECK}: lag"
    if primary is None:
        return warning(check, "it cannot be told: the primary does not answer", "see `database`")
    behind = _bytes_behind(facts, primary)
    lag = inf if facts.lag is None else facts.lag
    text = "it has all that the primary has"
    if behind:
        since = "nothing since its start" if facts.lag is None else f"the last transaction {facts.lag:.1f} s ago"
        text = f"{behind} bytes behind the primary; it has taken over {since}"
    remedy = "look at pg_stat_replication on the primary, and at long queries on the replica"
    if behind and REMEMBERED < lag < inf:
        return failed(check, f"{text}: who has written does not read it for sure", remedy)
    if not facts.is_receiving:
        remedy = "look at primary_conninfo, and into the log, of the replica"
        return warning(check, f"{text}, and is not connected to where its log comes from", remedy)
    return warning(check, text, remedy) if behind and lag > LONGEST_LAG else ok(check, text)


def _judge_encryption(facts: DatabaseFacts) -> Finding:
    check = f"{CHECK}: TLS"
    if facts.is_encrypted or facts.is_local:
        return ok(check, "encrypted" if facts.is_encrypted else "not needed on one machine")
    remedy = "add ?sslmode=require to POSTGRES_READ_URL, once the server has ssl = on (PgBouncer: client_tls_sslmode)"
    return warning(check, "passwords and data cross the network in clear text", remedy)


def _judge_connections(settings: PostgresSettings, facts: DatabaseFacts, fleet: Fleet) -> Finding:
    check = f"{CHECK}: connections"
    needed = fleet.web * settings.POSTGRES_POOL_SIZE
    room = min(facts.room, facts.max_connections - facts.reserved - facts.others)
    text = f"{fleet.web} web x {settings.POSTGRES_POOL_SIZE} = {needed} of {room}"
    if settings.POSTGRES_POOL_MODE == "session" and needed > room:
        return failed(check, text, "raise max_connections on the replica, or lower POSTGRES_POOL_SIZE")
    return ok(check, text)
