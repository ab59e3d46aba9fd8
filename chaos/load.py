"""A steady, bounded load: readers, writers, sign-ins, orders with jobs, and one caller who asks for too much."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from itertools import count
from random import SystemRandom
from typing import Any, Final

import httpx2

from chaos.journal import ANSWERED, SAID, Asked, Journal
from chaos.world import World

PATIENCE: Final = 20.0  # seconds until a caller gives up
CONNECTIONS: Final = 64
HTTP_OK: Final = 200
REFRESHES: Final = 3  # of each login

_UNSAID: Final = {int(SAID): "503 without Retry-After"}
SECONDS: Final = (0.0, 0.3, 2.0)  # that the job of an order takes

some = SystemRandom()
Answer = httpx2.Response | None


class Load:
    """Callers who ask one thing after the other, each at a pace of their own, whatever becomes of the answers.

    Attributes:
        journal: what they have seen.
    """

    def __init__(self, world: World, journal: Journal) -> None:
        self.world = world
        self.journal = journal
        self._numbers = count(1)
        self._client = httpx2.AsyncClient(
            base_url=f"{world.url}/api/v1/",
            timeout=PATIENCE,
            limits=httpx2.Limits(max_connections=CONNECTIONS),
            trust_env=False,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """They ask meanwhile; at the end they are given the time to hear the answers they wait for."""
        stopped = asyncio.Event()
        callers: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (0.2, self.read_tiers),
            (0.2, self.read_tiers),
            (0.2, self.read_profile),
            (0.2, self.read_profile),
            (0.2, self.read_fixed),
            (0.5, self.rename_tier),
            (0.5, self.rename_user),
            (0.5, self.sign_in),
            (0.25, self.place_order),
            (0.25, self.place_order),
            (0.25, self.ask_too_much),
            (0.25, self.ask_too_much),
        ]
        async with self._client, asyncio.TaskGroup() as group:
            for pace, ask in callers:
                group.create_task(_keep(ask, pace, stopped))
            try:
                yield
            finally:
                stopped.set()

    # ---- Asking ----

    async def ask(
        self, kind: str, method: str, path: str, *, fine: Collection[int] = (HTTP_OK,), **options: Any
    ) -> Answer:
        """The answer, if it has one of the statuses that are fine; whatever comes is noted."""
        sent = time.monotonic()
        try:
            answer = await self._client.request(method, path, **options)
        except httpx2.TimeoutException:
            self._note(kind, sent, "timeout")
            return None
        except httpx2.TransportError as error:
            self._note(kind, sent, "no answer", repr(error))
            return None
        if answer.status_code in fine:
            self._note(kind, sent, ANSWERED)
            return answer
        said = answer.status_code == int(SAID) and "Retry-After" in answer.headers
        self._note(
            kind, sent, SAID if said else _UNSAID.get(answer.status_code, f"{answer.status_code}"), _words_of(answer)
        )
        return None

    def _note(self, kind: str, sent: float, outcome: str, words: str = "") -> None:
        self.journal.asked.append(Asked(kind, sent, time.monotonic(), outcome, words))

    # ---- Reading ----

    async def read_tiers(self) -> None:
        """A cached list, which must know each rename that was acknowledged."""
        tier, asked = self.world.tier, time.monotonic()
        known = tier.known
        if answer := await self.ask("cached list", "GET", "tiers"):
            (name,) = (one["name"] for one in answer.json()["data"] if one["id"] == self.world.tier_id)
            self.journal.see(tier, self.world.version_of(name), known, asked)

    async def read_profile(self) -> None:
        """A cached public profile."""
        user, asked = self.world.user, time.monotonic()
        known = user.known
        if answer := await self.ask("public profile", "GET", f"user/{user.name}"):
            self.journal.see(user, self.world.version_of(answer.json()["name"]), known, asked)

    async def read_fixed(self) -> None:
        """A cached answer that does not change."""
        await self.ask("cached GET", "GET", "tier/free")

    # ---- Writing, and reading what was written ----

    async def rename_tier(self) -> None:
        """The tier's name is its address: after a rename that was not acknowledged it may have either."""
        tier, names = self.world.tier, self.world.tier_name
        tried, old = tier.tried + 1, range(tier.tried, tier.known - 1, -1)
        tier.tried = tried
        for version in old:
            values = {"name": names(tried)}
            answer = await self.ask(
                "rename", "PATCH", f"tier/{names(version)}", fine=(200, 404), json=values, headers=self.world.admin
            )
            if answer is None:
                return
            if answer.status_code == HTTP_OK:
                tier.acknowledge(tried)
                await self._read_back(version, tried)
                return

    async def _read_back(self, version: int, known: int) -> None:
        names, asked = self.world.tier_name, time.monotonic()
        if (old := await self.ask("read back", "GET", f"tier/{names(version)}", fine=(200, 404))) is not None:
            self.journal.see(self.world.tier, version if old.status_code == HTTP_OK else known, known, asked)
        asked = time.monotonic()
        if (new := await self.ask("read back", "GET", f"tier/{names(known)}", fine=(200, 404))) is not None:
            self.journal.see(self.world.tier, known if new.status_code == HTTP_OK else version, known, asked)
        await self.read_tiers()

    async def rename_user(self) -> None:
        user = self.world.user
        user.tried += 1
        values = {"name": self.world.user_name(user.tried)}
        if await self.ask("rename", "PATCH", f"user/{user.name}", json=values, headers=self.world.admin):
            user.acknowledge(user.tried)
            await self.read_profile()

    # ---- Signing in ----

    async def sign_in(self) -> None:
        """A login, some refreshes, and each access token is used at once."""
        answer = await self.ask("sign in", "POST", "login", data=self.world.somebody)
        for _ in range(REFRESHES):
            if answer is None:
                return
            token = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            asked = time.monotonic()
            me = await self.ask("own profile", "GET", "user/me/", fine=(200, 401), headers=token)
            if me is not None and me.status_code != HTTP_OK:
                self.journal.forgotten.append(asked)
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
            answer = await self.ask("refresh", "POST", "refresh", headers={"Cookie": cookie})

    # ---- Jobs ----

    async def place_order(self) -> None:
        """An order and its job, in one transaction."""
        await self.order(some.choice(SECONDS))

    async def order(self, seconds: float) -> int | None:
        """The number of one that was acknowledged."""
        number = next(self._numbers)
        path = f"{self.world.url}/orders/{number}"
        answer = await self.ask("order", "POST", path, fine=(201,), params={"seconds": seconds})
        if answer is None:
            return None
        self.journal.orders[number] = time.monotonic()
        return number

    # ---- Asking for too much ----

    async def ask_too_much(self) -> None:
        sent = time.monotonic()
        answer = await self.ask("limited", "GET", "user/me/", fine=(200, 429), headers=self.world.limited)
        if answer is not None and answer.status_code == HTTP_OK:
            self.journal.admitted.append((sent, time.monotonic()))


def _words_of(answer: httpx2.Response) -> str:
    """What a problem document says. Those of nginx are some as well."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError):
        return answer.text[:100]


async def _keep(ask: Callable[[], Awaitable[None]], pace: float, stopped: asyncio.Event) -> None:
    """Asks again and again, as many times a second as the answers allow, and no more than the pace says."""
    await asyncio.sleep(some.uniform(0, pace))
    while not stopped.is_set():
        due = time.monotonic() + pace
        await ask()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
