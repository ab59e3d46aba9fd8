"""`/metrics`: what is counted, and who may read it."""

import httpx2
import pytest
from fastapi import APIRouter

from app.core.config import EnvironmentOption, EnvironmentSettings, MetricsSettings, SettingsError
from app.core.setup import create_application
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

TOKEN = "kP3-vb8Qz_LwX0rT7uYc1mN5"


class Small(MetricsSettings, EnvironmentSettings):
    """Settings of an app that has nothing but metrics."""


async def ask(settings: MetricsSettings, *authorization: str) -> httpx2.Response:
    async with client_of(create_application(APIRouter(), settings)) as client:
        headers = [("Authorization", value) for value in authorization]
        return await client.get("http://test/metrics", headers=headers)


async def test_locally_everybody_reads_the_metrics() -> None:
    answer = await ask(Small())
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "# TYPE slipway_cache_requests_total counter" in answer.text


@pytest.mark.parametrize("environment", [EnvironmentOption.STAGING, EnvironmentOption.PRODUCTION])
async def test_elsewhere_there_are_none_without_a_token(environment: EnvironmentOption) -> None:
    assert (await ask(Small(ENVIRONMENT=environment))).status_code == 404
    assert (await ask(MetricsSettings())).status_code == 404


@pytest.mark.parametrize("environment", list(EnvironmentOption))
@pytest.mark.parametrize("sent", [(), ("Bearer wrong",), ("Bearer ",), (f"Basic {TOKEN}",), (f"Bearer {TOKEN}x",)])
async def test_with_a_token_only_who_has_it_reads_them(environment: EnvironmentOption, sent: tuple[str, ...]) -> None:
    settings = Small(ENVIRONMENT=environment, METRICS_TOKEN=TOKEN)
    refused = await ask(settings, *sent)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert (await ask(settings, f"Bearer {TOKEN}")).status_code == 200


@pytest.mark.parametrize("weak", ["short", "aaaaaaaaaaaaaaaaaaaaaaaa", "changeme-changeme-changeme"])
async def test_production_refuses_a_weak_token(weak: str) -> None:
    with pytest.raises(SettingsError, match="METRICS_TOKEN"):
        Small(ENVIRONMENT="production", METRICS_TOKEN=weak)
