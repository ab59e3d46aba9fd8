"""What the tests of the console's lists share: they act on rows, and look at what was written down."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import httpx2
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.models.console_action import ConsoleAction
from app.models.security_event import SecurityEvent
from tests.admin.operator import post

Entry = tuple[str, str, str, dict[str, Any], dict[str, Any]]


async def act(
    console: httpx2.AsyncClient, key: str, name: str, pk: object, values: Mapping[str, Any] | None = None
) -> httpx2.Response:
    """Does a row action."""
    return await post(console, f"_api/{key}/row-action?{urlencode({'name': name, 'pk': pk})}", values)


async def act_on(
    console: httpx2.AsyncClient, key: str, name: str, pks: list[int], values: Mapping[str, Any] | None = None
) -> httpx2.Response:
    """Does an action on several rows."""
    query = urlencode({"name": name, "pks": pks}, doseq=True)
    return await post(console, f"_api/{key}/action?{query}", values)


async def entries(db: AsyncSession) -> list[Entry]:
    """The audit trail, the oldest first: who, what, to what, before, after."""
    rows = await db.exec(select(ConsoleAction).order_by(col(ConsoleAction.id)))
    return [(row.actor, row.action, row.target, row.before, row.after) for row in rows]


async def events(db: AsyncSession) -> list[tuple[str, int | None, int | None]]:
    """The security events but for logins, the oldest first: kind, user, actor."""
    rows = await db.exec(
        select(SecurityEvent).where(col(SecurityEvent.kind) != "login").order_by(col(SecurityEvent.id))
    )
    return [(row.kind, row.user_id, row.actor_id) for row in rows]


async def cache(client: httpx2.AsyncClient, *paths: str) -> None:
    """Asks the API until it answers these from its cache, which a busy machine can put off."""
    async with asyncio.timeout(10):
        for path in paths:
            while not await is_cached(client, path):
                pass


async def is_cached(client: httpx2.AsyncClient, path: str) -> bool:
    """Whether the API has answered from its cache."""
    return (await client.get(path)).headers["X-Cache"] == "HIT"


def shows_as_text(page: httpx2.Response, *markup: str) -> None:
    """That a page has none of these as markup."""
    assert page.status_code < 500
    for part in markup:
        assert part not in page.text
