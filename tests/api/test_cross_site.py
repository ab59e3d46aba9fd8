"""What a browser's cookie alone can do is refused to other sites' pages."""

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from tests.helper import PASSWORD, all_rows, create_user

pytestmark = pytest.mark.anyio

FOREIGN: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://test"},
    {"Sec-Fetch-Site": "whatever"},
    {"Sec-Fetch-Site": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "http://test.evil.example"},
    {"Origin": "http://test@evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
)
OURS: tuple[dict[str, str], ...] = (
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://test"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://app.test"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://test"},
    {"Origin": "https://test:8443"},
)


async def log_in(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await client.post("login", data={"username": user.username, "password": PASSWORD})


@pytest.mark.parametrize("path", ["refresh", "logout"])
async def test_another_sites_page_cannot_use_the_cookie(
    client: httpx2.AsyncClient, db: AsyncSession, path: str
) -> None:
    await log_in(client, db)
    before = await all_rows(db)
    for headers in FOREIGN:
        refused = await client.post(path, headers=headers)
        assert refused.status_code == 403, headers
        assert refused.json()["type"] == "urn:problem-type:cross-site-request"
    assert await all_rows(db) == before


@pytest.mark.parametrize("path", ["refresh", "logout"])
async def test_ones_own_page_and_what_is_no_browser_can(
    client: httpx2.AsyncClient, db: AsyncSession, path: str
) -> None:
    for headers in OURS:
        await log_in(client, db)
        assert (await client.post(path, headers=headers)).status_code == 200, headers


async def test_another_sites_page_cannot_sign_anybody_in(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    form = {"username": user.username, "password": PASSWORD}
    for headers in FOREIGN:
        refused = await client.post("login", data=form, headers=headers)
        assert refused.status_code == 403, headers
        assert "Set-Cookie" not in refused.headers
    for headers in OURS:
        assert (await client.post("login", data=form, headers=headers)).status_code == 200, headers


async def test_an_origin_that_cors_allows_is_no_stranger(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "CORS_ORIGINS", ("https://app.example",))
    await log_in(client, db)
    for site in ({"Sec-Fetch-Site": "cross-site"}, {}):
        assert (await client.post("refresh", headers={"Origin": "https://app.example"} | site)).status_code == 200
        assert (await client.post("refresh", headers={"Origin": "https://evil.example"} | site)).status_code == 403
