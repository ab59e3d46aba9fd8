"""Redis/Valkey: is it there, and is it set up for what it is used for?"""

from collections.abc import Iterator
from dataclasses import dataclass

from app.core.config import (
    EnvironmentOption,
    RateLimitMode,
    RedisCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    SettingsGroup,
    environment_of,
)
from app.core.doctor.clock import judge_clock
from app.core.doctor.eviction import CACHE, LIMITS, NOTES, QUEUE, judge_eviction
from app.core.doctor.finding import Finding, failed, ok, warning
from app.core.doctor.reason import reason_of
from app.core.doctor.valkey_facts import ValkeyFacts, addresses_in, ask, places_in, says_password

OLDEST = 7  # Redis's version; every Valkey says it is 7.2.4


@dataclass(frozen=True, slots=True)
class Used:
    """A URL of a server, or cluster, and what it is used for.

    Attributes:
        uses: some of `cache`, `limits`, `notes`, `queue`.
        setting: the variables that say where it is.
        is_shared: whether the server is used for something else besides, be it with another login or database.
    """

    url: str
    uses: tuple[str, ...]
    setting: str
    is_production: bool
    is_shared: bool

    @property
    def name(self) -> str:
        """What findings call it."""
        return f"valkey ({', '.join(self.uses)})"


def servers_of(settings: SettingsGroup) -> list[Used]:
    """Each URL once, whatever it is used for: each login, and each database, has to be let in."""
    uses: dict[str, list[tuple[str, str]]] = {}
    if isinstance(settings, RedisCacheSettings):
        uses.setdefault(settings.redis_cache_url, []).append((CACHE, "REDIS_CACHE_URL"))
    if isinstance(settings, RedisRateLimiterSettings) and (kept := _kept_with_limits(settings)):
        uses.setdefault(settings.redis_rate_limit_url, []).append((kept, "REDIS_RATE_LIMIT_URL"))
    if isinstance(settings, RedisQueueSettings):
        uses.setdefault(settings.redis_queue_url, []).append((QUEUE, "REDIS_QUEUE_URL"))
    is_production = environment_of(settings) is EnvironmentOption.PRODUCTION
    return [
        Used(
            url,
            tuple(use for use, _ in of),
            ", ".join(name for _, name in of),
            is_production,
            is_shared=len(of) > 1 or any(url != other and places_in(url) & places_in(other) for other in uses),
        )
        for url, of in uses.items()
    ]


def _kept_with_limits(settings: RedisRateLimiterSettings) -> str | None:
    """What `core/lifespan.py` keeps on the limits' server: the notes of who has written as well, limits or not."""
    if settings.RATE_LIMIT_MODE is not RateLimitMode.OFF:
        return LIMITS
    return NOTES if getattr(settings, "POSTGRES_READ_URL", None) is not None else None


async def check_valkey(used: Used) -> list[Finding]:
    """All about one of them, with its own login."""
    try:
        servers = await ask(used.url)
    except Exception as error:  # redis-py's kinds; whatever it is, the server cannot be used.
        remedy = f"start it, or correct {used.setting} (or host and port in its place): address, password, TLS"
        return [failed(used.name, f"{addresses_in(used.url)} cannot be used: {reason_of(error)}", remedy)]
    return [finding for facts in servers for finding in _judge(used, facts)]


async def certain_faults_of_valkey(used: Used) -> list[Finding]:
    """What no waiting mends, and what to warn of at a start. Raises: whatever redis-py does when it is away."""
    found: list[Finding] = []
    for facts in await ask(used.url):
        found += [_judge_password(used, facts), *_judge_eviction(used, facts)]
    return found


def _judge(used: Used, facts: ValkeyFacts) -> Iterator[Finding]:
    yield from judge_server(used, facts)
    yield _judge_password(used, facts)
    yield _judge_encryption(used, facts)
    yield from _judge_eviction(used, facts)
    if QUEUE in used.uses and facts.info is not None:
        yield _judge_persistence(facts.info)
    yield judge_clock(used.name, facts.clock)


def judge_server(used: Used, facts: ValkeyFacts) -> Iterator[Finding]:
    info = facts.info
    if info is None:
        remedy = (
            "allow it (ACL SETUSER ... +info), or see for yourself that the server is set up as docs/deploy.md says"
        )
        yield warning(
            used.name,
            f"{facts.address} answers; its version, eviction and persistence cannot be seen: INFO is refused",
            remedy,
        )
        return
    version = info.get("redis_version", "0")
    kind = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    if int(version.partition(".")[0]) < OLDEST:
        yield failed(used.name, f"{facts.address} is {kind}, which is too old", "run Redis 7 or newer, or any Valkey")
    elif info.get("role") == "slave":
        remedy = f"have {used.setting} name the primary, or the sentinels (redis+sentinel://)"
        yield failed(used.name, f"{facts.address} is a replica: it takes no changes", remedy)
    elif facts.cluster_state not in {None, "ok"}:
        yield failed(used.name, f"{facts.address}: the cluster is not whole", "look at `valkey-cli --cluster check`")
    else:
        yield ok(used.name, f"{kind} at {facts.address}")


def _judge_password(used: Used, facts: ValkeyFacts) -> Finding:
    """Never a certain fault: managed services in a private network come without a password, and work.

    So a start warns of it. The doctor, who is asked for what could be better, fails.
    """
    check = f"{used.name}: password"
    if not facts.lets_in_anybody:
        return ok(check, f"it asks for {'one' if says_password(used.url) else 'a certificate'}")
    if facts.is_local:
        return ok(check, "none, on this machine")
    text = f"{facts.address} lets in whoever reaches it, without a password"
    remedy = f"set requirepass (or an ACL user) there, and the password in {used.setting}"
    return (failed if used.is_production else warning)(check, text, remedy)


def _judge_encryption(used: Used, facts: ValkeyFacts) -> Finding:
    check = f"{used.name}: TLS"
    if facts.is_encrypted or facts.is_local:
        return ok(check, "encrypted" if facts.is_encrypted else "not needed on one machine")
    text = "the password, and what is stored, cross the network in clear text"
    return warning(check, text, f"set tls-port on the server, and have {used.setting} begin with rediss")


def _judge_eviction(used: Used, facts: ValkeyFacts) -> Iterator[Finding]:
    if facts.info is None or "maxmemory_policy" not in facts.info:
        return
    maxmemory, policy = int(facts.info.get("maxmemory", "0")), facts.info["maxmemory_policy"]
    for use, setting in zip(used.uses, used.setting.split(", "), strict=True):
        yield judge_eviction(use, setting, facts.address, maxmemory, policy, is_shared=used.is_shared)


def _judge_persistence(info: dict[str, str]) -> Finding:
    check = f"valkey {QUEUE}: persistence"
    if info.get("aof_enabled") == "1":
        return ok(check, "appendonly yes")
    text = "a restart forgets what is queued: it is sent again from PostgreSQL, seconds later"
    return warning(check, text, "CONFIG SET appendonly yes, and the same in the server's configuration")
