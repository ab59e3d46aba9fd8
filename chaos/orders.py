"""What became of the orders and their jobs, as PostgreSQL has it in the end."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from chaos.deployment import Deployment

PATIENCE: Final = 60.0  # seconds for what is still to be done: twice the lease of a worker that was killed
NEVER: Final = float("inf")

OPEN: Final = "SELECT count(*) FROM job WHERE state IN ('queued', 'running')"
ORDERS: Final = """
SELECT number, extract(epoch FROM created_at)::float AS stored, extract(epoch FROM finished_at)::float AS ended, times
FROM placed
LEFT JOIN (SELECT (args ->> 0)::int AS number, created_at, finished_at FROM job WHERE function = 'deliver') AS jobs
    USING (number)
LEFT JOIN (SELECT number, count(*)::int AS times FROM delivered GROUP BY number) AS deliveries USING (number)
"""


@dataclass(frozen=True, slots=True)
class Order:
    """One that is stored or was acknowledged.

    Attributes:
        since: when it was acknowledged, or stored if nobody was told, on `time.monotonic()`.
        done: when its job was, on the same clock; `NEVER` when it was not.
        times: how often it was delivered.
    """

    since: float
    done: float
    times: int


async def until_done(deployment: Deployment) -> None:
    """Returns when no job is left to do, or after `PATIENCE`: those count as lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while (await deployment.fetch(OPEN))[0]["count"]:  # noqa: ASYNC110 -- it asks another process
                await asyncio.sleep(0.2)


async def all_orders(deployment: Deployment, acknowledged: Mapping[int, float]) -> list[Order]:
    """Those that are stored, and those that should be. Args: acknowledged: when each was, by its number."""
    offset = time.monotonic() - time.time()
    rows = {row["number"]: row for row in await deployment.fetch(ORDERS)}
    orders = [Order(acknowledged[number], NEVER, 0) for number in acknowledged.keys() - rows.keys()]
    for number, row in rows.items():
        stored = offset + (row["stored"] or 0.0)
        times = row["times"] or 0
        done = offset + row["ended"] if times and row["ended"] is not None else NEVER
        orders.append(Order(acknowledged.get(number, stored), done, times))
    return orders


def of_faults(orders: Iterable[Order], begins: Sequence[float]) -> list[list[Order]]:
    """The orders that each fault has met: the first that began while they waited, else the last before they came."""
    met: list[list[Order]] = [[] for _ in begins]
    for order in orders:
        before = sum(began <= order.since for began in begins)
        waited = before < len(begins) and begins[before] < order.done
        met[before if waited else max(0, before - 1)].append(order)
    return met
