"""Whether all is well again, asked of each server, of nginx, and of PostgreSQL itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx2

from chaos.deployment import Deployment
from chaos.load import Load

PATIENCE: Final = 45.0  # seconds until it is not waited for any longer; more than a lease of a job
JOB_SECONDS: Final = 5.0  # in which a new job is done, when all is well
EVERY: Final = 0.1  # seconds

TIER: Final = "SELECT name FROM tier WHERE id = $1"
USER: Final = 'SELECT name FROM "user" WHERE username = $1'
DELIVERED: Final = "SELECT 1 FROM delivered WHERE number = $1"


class Looking:
    """Looks at everything that a caller could miss."""

    def __init__(self, deployment: Deployment, load: Load, client: httpx2.AsyncClient) -> None:
        self._deployment = deployment
        self._load = load
        self._world = load.world
        self._client = client

    async def until_well(self) -> float | None:
        """When it was, on `time.monotonic()`; None when it did not become so within `PATIENCE`."""
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            if await self.is_well():
                return time.monotonic()
            await asyncio.sleep(EVERY)
        return None

    async def is_well(self) -> bool:
        """All processes live, all is ready, what is cached is used and right, and a new job is done."""
        deployed = self._deployment
        if any(one.process.poll() is not None for one in (*deployed.servers, *deployed.workers)):
            return False
        try:
            at_servers = [await self._serves(server.url) for server in deployed.servers]
        except (httpx2.TransportError, OSError):
            return False
        return all(at_servers) and await self._does_jobs()

    async def versions(self) -> tuple[int, int]:
        """Of the tier and of the user, as PostgreSQL has them."""
        (tier,) = await self._deployment.fetch(TIER, self._world.tier_id)
        (user,) = await self._deployment.fetch(USER, self._world.user.name)
        return self._world.version_of(tier["name"]), self._world.version_of(user["name"])

    async def lost_writes(self) -> int:
        """How many of the two lack what was acknowledged. What is acknowledged meanwhile is in what is read, too."""
        registers = self._world.tier, self._world.user
        known = [register.known for register in registers]
        stored = await self.versions()
        return sum(
            not least <= version <= one.tried for one, least, version in zip(registers, known, stored, strict=True)
        )

    async def _serves(self, url: str) -> bool:
        ready = await self._client.get(f"{url}/api/v1/ready")
        if ready.status_code != httpx2.codes.OK or ready.json()["status"] != "ready":
            return False
        hits = [await self._client.get(f"{url}/api/v1/tier/free") for _ in range(2)]
        if hits[-1].headers.get("X-Cache") != "HIT":
            return False
        tier, user = await self.versions()
        tiers = await self._client.get(f"{url}/api/v1/tiers")
        profile = await self._client.get(f"{url}/api/v1/user/{self._world.user.name}")
        if tiers.status_code != httpx2.codes.OK or profile.status_code != httpx2.codes.OK:
            return False
        (name,) = (one["name"] for one in tiers.json()["data"] if one["id"] == self._world.tier_id)
        version_of = self._world.version_of
        return version_of(name) >= tier and version_of(profile.json()["name"]) >= user

    async def _does_jobs(self) -> bool:
        number = await self._load.order(0)
        if number is None:
            return False
        began = time.monotonic()
        while not await self._deployment.fetch(DELIVERED, number):
            if time.monotonic() - began > JOB_SECONDS:
                return False
            await asyncio.sleep(EVERY)
        return True


@asynccontextmanager
async def looking(deployment: Deployment, load: Load) -> AsyncIterator[Looking]:
    """With connections of its own."""
    async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
        yield Looking(deployment, load, client)
