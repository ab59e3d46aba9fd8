"""The faults, and what mends them."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from chaos.deployment import Deployment
from chaos.proxy import Fault
from chaos.proxy_process import ProxyProcess
from scripts.embedded import Postgres, Valkey

LEFT_ALONE: Final = 3.5  # seconds for which nginx does not ask a server that it could not reach
RELOAD_EVERY: Final = 1.0  # seconds

Act = Callable[[Deployment], Awaitable[None]]


@dataclass(frozen=True)
class Injection:
    """A fault.

    Attributes:
        name: for `--only`.
        what: what is done, in words.
        hurt: does it, and returns when it is done.
        at_least: seconds that it lasts, where it shows nothing before.
        mend: ends it; the time until all is well again is counted from its beginning.
    """

    name: str
    what: str
    hurt: Act
    mend: Act
    at_least: float = 0.0


async def nothing(deployment: Deployment) -> None:
    """Does it."""


def to_valkey(deployment: Deployment) -> ProxyProcess:
    return deployment.to_valkey


def to_postgres(deployment: Deployment) -> ProxyProcess:
    return deployment.to_postgres


async def switch(deployment: Deployment, *, proxy: Callable[[Deployment], ProxyProcess], to: Fault) -> None:
    await proxy(deployment).switch(to)


# ---- PostgreSQL and Valkey themselves ----


async def kill(server: Postgres | Valkey) -> None:
    if server.process is not None:
        server.process.kill()
        await asyncio.to_thread(server.process.wait)


async def kill_valkey(deployment: Deployment) -> None:
    """It has nothing on disk."""
    await kill(deployment.valkey)


async def start_valkey(deployment: Deployment) -> None:
    await asyncio.to_thread(deployment.valkey.start)


async def stop_postgres(deployment: Deployment) -> None:
    """Its fast shutdown: whoever is connected is told, and cut off."""
    await asyncio.to_thread(deployment.postgres.stop)


async def kill_postgres(deployment: Deployment) -> None:
    await kill(deployment.postgres)


async def start_postgres(deployment: Deployment) -> None:
    await asyncio.to_thread(deployment.postgres.start)


# ---- Ours, and nginx ----


async def kill_server(deployment: Deployment) -> None:
    await deployment.servers[0].end(signal.SIGKILL)


async def start_server(deployment: Deployment) -> None:
    await deployment.servers[0].start()


async def kill_worker(deployment: Deployment) -> None:
    await deployment.workers[0].end(signal.SIGKILL)


async def start_worker(deployment: Deployment) -> None:
    await deployment.workers[0].start()


async def restart_servers(deployment: Deployment) -> None:
    """One after the other, as docs/deploy.md says."""
    for server in deployment.servers:
        await server.end(signal.SIGTERM)
        await server.start()
        await asyncio.sleep(LEFT_ALONE)


async def reload_nginx(deployment: Deployment, *, times: int = 3) -> None:
    for _ in range(times):
        deployment.nginx.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(RELOAD_EVERY)


# ---- The list ----

# Longer than a statement may take: POSTGRES_STATEMENT_TIMEOUT_SECONDS, and the half second of HANG_TIMEOUT.
_AT_LEAST: Final = {Fault.HANG: 8.0}
_WORDS: Final = {
    Fault.DOWN: "refuses connections, open ones are closed",
    Fault.LATENCY: "answers 100 ms later each way",
    Fault.RESET: "new and open connections are reset",
    Fault.HANG: "accepts connections and says nothing",
}


def _of_network(server: str, proxy: Callable[[Deployment], ProxyProcess], fault: Fault) -> Injection:
    return Injection(
        f"{server.lower()}-{fault}",
        f"{server} {_WORDS[fault]}",
        partial(switch, proxy=proxy, to=fault),
        partial(switch, proxy=proxy, to=Fault.NONE),
        _AT_LEAST.get(fault, 0.0),
    )


INJECTIONS: Final = (
    Injection("none", "nothing", nothing, nothing),
    *(_of_network("Valkey", to_valkey, fault) for fault in _WORDS),
    *(_of_network("PostgreSQL", to_postgres, fault) for fault in _WORDS),
    Injection("valkey-kill", "Valkey killed, comes back empty", kill_valkey, start_valkey),
    Injection("postgresql-restart", "PostgreSQL stopped (fast)", stop_postgres, start_postgres),
    Injection("postgresql-kill", "PostgreSQL killed", kill_postgres, start_postgres),
    Injection("server-kill", "one API server killed", kill_server, start_server),
    Injection("worker-kill", "one worker killed", kill_worker, start_worker),
    Injection("rolling-restart", "API servers restarted one after the other", restart_servers, nothing),
    Injection("nginx-reload", "nginx reloaded three times", reload_nginx, nothing),
)


async def inject(injection: Injection, deployment: Deployment, seconds: float) -> tuple[float, float]:
    """Hurts for at least so many seconds, and mends.

    Returns: when it began, and when it began to be mended, on `time.monotonic()`.
    """
    began = time.monotonic()
    await injection.hurt(deployment)
    await asyncio.sleep(max(0.0, began + max(seconds, injection.at_least) - time.monotonic()))
    ended = time.monotonic()
    await injection.mend(deployment)
    return began, ended
