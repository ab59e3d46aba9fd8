"""PostgreSQL: is it there, what is it, and has it room for all of us?"""

from collections.abc import Iterator

from app.core.config import PostgresSettings
from app.core.db.engine import DatabaseUnavailable
from app.core.doctor.clock import judge_clock
from app.core.doctor.connections import Fleet
from app.core.doctor.database_facts import DatabaseFacts, address_of, ask
from app.core.doctor.finding import Finding, failed, ok, warning
from app.core.doctor.reason import reason_of

OLDEST = 140_000  # PostgreSQL 14: no SQL of ours asks for a newer one


async def check_database(settings: PostgresSettings, fleet: Fleet) -> list[Finding]:
    """All about the primary."""
    try:
        facts = await ask(settings)
    except DatabaseUnavailable as error:
        return [away("database", address_of(settings.postgres_url), error, "POSTGRES_SERVER and POSTGRES_PORT")]
    return [
        ok("database", f"PostgreSQL {facts.version_name} at {facts.address}"),
        judge_version(facts),
        judge_encoding(facts),
        _judge_role(facts),
        _judge_encryption(facts),
        _judge_writing(facts),
        judge_connections(settings, facts, fleet),
        judge_clock("database", facts.clock),
    ]


def away(check: str, address: str, error: DatabaseUnavailable, names: str) -> Finding:
    """It cannot be reached. `names` are the settings that say where it is."""
    return failed(
        check,
        f"{address} cannot be used: {reason_of(error.__cause__ or error)}",
        f"start PostgreSQL there, or correct {names} (or the URL in their place), user, password and database",
    )


async def certain_faults(settings: PostgresSettings, connections: int) -> list[Finding]:
    """What no waiting mends, for a process that may hold so many connections. Raises: DatabaseUnavailable."""
    facts = await ask(settings)
    return [judge_version(facts), judge_encoding(facts), *judge_own_pool(settings, facts, connections)]


def judge_version(facts: DatabaseFacts) -> Finding:
    check = "database: version"
    if facts.version < OLDEST:
        remedy = f"upgrade to PostgreSQL {OLDEST // 10_000} or newer"
        return failed(check, f"PostgreSQL {facts.version_name} is too old", remedy, is_certain=True)
    return ok(check, facts.version_name)


def judge_encoding(facts: DatabaseFacts) -> Finding:
    check = "database: encoding"
    if facts.encoding != "UTF8":
        remedy = "create the database anew with ENCODING 'UTF8' TEMPLATE template0, and have POSTGRES_DB name it"
        return failed(check, f"{facts.encoding} does not hold every text", remedy, is_certain=True)
    return ok(check, "UTF8")


def _judge_role(facts: DatabaseFacts) -> Finding:
    check = "database: role"
    if facts.is_superuser:
        remedy = (
            "have POSTGRES_USER name a role that owns its database and is no superuser (ALTER ROLE ... NOSUPERUSER)"
        )
        return warning(check, "the user is a superuser: whoever gets hold of it has the whole server", remedy)
    return ok(check, "no superuser")


def _judge_encryption(facts: DatabaseFacts) -> Finding:
    check = "database: TLS"
    if facts.is_encrypted:
        return ok(check, "encrypted")
    if facts.is_local:
        return ok(check, "not needed on one machine")
    remedy = "add ?sslmode=require to POSTGRES_URL, once the server has ssl = on (PgBouncer: client_tls_sslmode)"
    return warning(check, "passwords and data cross the network in clear text", remedy)


def _judge_writing(facts: DatabaseFacts) -> Finding:
    check = "database: writing"
    if facts.is_replica:
        remedy = "have POSTGRES_SERVER or POSTGRES_URL name the primary; a replica belongs into POSTGRES_READ_URL"
        return failed(check, "it is a replica", remedy)
    if facts.is_read_only:
        remedy = "ALTER DATABASE ... (or ALTER ROLE ...) RESET default_transaction_read_only"
        return failed(check, "transactions are read-only", remedy)
    return ok(check, "it takes changes")


def judge_connections(settings: PostgresSettings, facts: DatabaseFacts, fleet: Fleet) -> Finding:
    """Whether all processes together fit."""
    check = "database: connections"
    needed, sum_of = fleet.connections(settings)
    if settings.POSTGRES_POOL_MODE == "transaction":
        return ok(
            check,
            f"behind PgBouncer: its max_client_conn has to be {needed} or more ({sum_of}), and the default_pool_size"
            f" of all its pools together at most {facts.room}",
        )
    room = min(facts.room, facts.max_connections - facts.reserved - facts.others)
    text = f"{sum_of} = {needed} of {room} ({'; '.join(_limits(facts))})"
    if needed > room:
        return failed(
            check,
            text,
            f"set max_connections to {needed + facts.reserved + facts.others} or more, lower POSTGRES_POOL_SIZE or the"
            " number of processes, or put PgBouncer in between (POSTGRES_POOL_MODE=transaction)",
        )
    return ok(check, text)


def _limits(facts: DatabaseFacts) -> Iterator[str]:
    yield f"max_connections {facts.max_connections}, {facts.reserved} reserved, {facts.others} used by others"
    if facts.role_limit is not None:
        yield f"{facts.role_limit} for the role"
    if facts.database_limit is not None:
        yield f"{facts.database_limit} for the database"


def judge_own_pool(settings: PostgresSettings, facts: DatabaseFacts, connections: int) -> Iterator[Finding]:
    """What there is to say against a process that may hold so many connections, if nobody else had any."""
    if settings.POSTGRES_POOL_MODE == "session" and connections > facts.room:
        yield failed(
            "database: connections",
            f"this process alone may hold {connections}, and PostgreSQL has {facts.room} ({'; '.join(_limits(facts))})",
            "lower POSTGRES_POOL_SIZE (of a worker: max_jobs), or raise max_connections",
            is_certain=True,
        )
