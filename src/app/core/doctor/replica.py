"""The replica that answers what is only read."""

from app.core.config import PostgresSettings
from app.core.db.engine import DatabaseUnavailable
from app.core.db.replica import REMEMBERED
from app.core.doctor.clock import judge_clock
from app.core.doctor.connections import Fleet
from app.core.doctor.database import away
from app.core.doctor.database_facts import DatabaseFacts, address_of, ask
from app.core.doctor.finding import Finding, failed, ok, warning

CHECK = "replica"
LONGEST_LAG = 10.0  # seconds


async def check_replica(settings: PostgresSettings, fleet: Fleet) -> list[Finding]:
    """Nothing without `POSTGRES_READ_URL`."""
    url = settings.postgres_read_url
    if url is None:
        return []
    try:
        facts = await ask(settings, url)
    except DatabaseUnavailable as error:
        return [away(CHECK, address_of(url), error, "POSTGRES_READ_URL")]
    return [
        ok(CHECK, f"PostgreSQL {facts.version_name} at {facts.address}"),
        await _judge_origin(settings, facts),
        judge_lag(facts),
        _judge_encryption(facts),
        _judge_connections(settings, facts, fleet),
        judge_clock(CHECK, facts.clock),
    ]


async def certain_faults_of_replica(settings: PostgresSettings) -> list[Finding]:
    """What no waiting mends. Raises: DatabaseUnavailable."""
    url = settings.postgres_read_url
    return [] if url is None else [await _judge_origin(settings, await ask(settings, url))]


async def _judge_origin(settings: PostgresSettings, facts: DatabaseFacts) -> Finding:
    check = f"{CHECK}: origin"
    try:
        primary = await ask(settings)
    except DatabaseUnavailable:
        return warning(check, "it cannot be compared to the primary, which is away", "see `database`")
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


def judge_lag(facts: DatabaseFacts) -> Finding:
    check = f"{CHECK}: lag"
    if facts.lag is None or facts.is_in_step:
        return ok(check, "in step with what it was sent")
    remedy = "look at pg_stat_replication on the primary, and at long queries on the replica"
    if facts.lag > REMEMBERED:
        return failed(check, f"{facts.lag:.0f} s behind: who has written does not read it for sure", remedy)
    if facts.lag > LONGEST_LAG:
        return warning(check, f"{facts.lag:.1f} s behind", remedy)
    return ok(check, f"{facts.lag:.1f} s behind")


def _judge_encryption(facts: DatabaseFacts) -> Finding:
    check = f"{CHECK}: TLS"
    if facts.is_encrypted or facts.is_local:
        return ok(check, "encrypted" if facts.is_encrypted else "not needed on one machine")
    remedy = "add ?sslmode=require to POSTGRES_READ_URL, once the server has ssl = on"
    return warning(check, "passwords and data cross the network in clear text", remedy)


def _judge_connections(settings: PostgresSettings, facts: DatabaseFacts, fleet: Fleet) -> Finding:
    check = f"{CHECK}: connections"
    needed = fleet.web * settings.POSTGRES_POOL_SIZE
    room = min(facts.room, facts.max_connections - facts.reserved - facts.others)
    text = f"{fleet.web} web x {settings.POSTGRES_POOL_SIZE} = {needed} of {room}"
    if settings.POSTGRES_POOL_MODE == "session" and needed > room:
        return failed(check, text, "raise max_connections on the replica, or lower POSTGRES_POOL_SIZE")
    return ok(check, text)
