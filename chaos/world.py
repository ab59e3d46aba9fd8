"""Who and what is there before the load begins, made over HTTP."""

from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Any, Final

import httpx2

from chaos.journal import Register

LIMIT: Final = 10  # requests of the caller who asks for too much, in any
PERIOD: Final = 3  # seconds
TIERS: Final = "chaos"  # what their names begin with


@dataclass
class World:
    """Whom the load is about.

    Attributes:
        url: where nginx listens.
        admin, limited: headers of a superuser, and of somebody with few requests.
        somebody: name and password of a user.
        tier, tier_id: a tier whose name is its version; user: a user the same way, by user name.
    """

    url: str
    admin: dict[str, str]
    limited: dict[str, str]
    somebody: dict[str, str]
    tier_id: int
    tier: Register = field(default_factory=lambda: Register("tier"))
    user: Register = field(default_factory=lambda: Register("renamed"))

    def tier_name(self, version: int) -> str:
        return f"{TIERS}-{version}"

    def user_name(self, version: int) -> str:
        return f"Version-{version}"

    def version_of(self, name: str) -> int:
        """The version that stands in a name."""
        return int(name.rpartition("-")[2])


async def create_world(url: str, admin: dict[str, str]) -> World:
    """Signs up whom the load needs. Raises: httpx2.HTTPStatusError.

    Args:
        url: where nginx listens.
        admin: name and password of the superuser.
    """
    async with httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=20, trust_env=False) as client:

        async def post(path: str, **options: Any) -> Any:
            return (await client.post(path, **options)).raise_for_status().json()

        async def sign_in(who: dict[str, str]) -> dict[str, str]:
            return {"Authorization": f"Bearer {(await post('login', data=who))['access_token']}"}

        async def sign_up(username: str, name: str) -> dict[str, str]:
            who = {"username": username, "password": token_urlsafe(16)}
            await post("user", json={"name": name, "email": f"{username}@example.com", **who})
            return who

        boss = await sign_in(admin)
        tier = await post("tier", json={"name": f"{TIERS}-0"}, headers=boss)
        few = await post("tier", json={"name": "few"}, headers=boss)
        rule = {"name": "all", "path": "*", "limit": LIMIT, "period": PERIOD}
        await post("tier/few/rate_limit", json=rule, headers=boss)
        await sign_up("renamed", "Version-0")
        limited = await sign_up("limited", "Asks too much")
        moved = await client.patch("user/limited/tier", json={"tier_id": few["id"]}, headers=boss)
        moved.raise_for_status()
        somebody = await sign_up("somebody", "Somebody")
        return World(url, boss, await sign_in(limited), somebody, tier["id"])
