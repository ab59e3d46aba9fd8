"""What the cache's tests share: small apps, and a look into Valkey past everything of ours."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import REGISTRY
from redis import Redis

from app.core.config import AppSettings, RedisCacheSettings, SettingsGroup
from app.core.setup import create_application
from app.core.utils.cache.entry import Entry
from app.core.utils.cache.store import NOTES
from app.core.utils.rate_limit.rules import PREFIX
from scripts.embedded import Valkey
from tests.conftest import client_of


class CacheSettings(AppSettings, RedisCacheSettings):
    """A cache, and no database."""


class Stored:
    """What is in Valkey, as a plain client sees it."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def all_keys(self) -> set[str]:
        """Every key of the cache, but for the notes of what was invalidated."""
        others = (PREFIX + b":", b"{slipway:recent}")
        return {key.decode() for key in self.client.keys("*") if not key.startswith(others)} - {NOTES}

    def seconds_left(self, key: str) -> float:
        """How long a key is kept."""
        return float(self.client.pttl(key)) / 1000

    def values(self, key: str) -> list[bytes]:
        """The stored answers of a resource."""
        return [value for field, value in self.client.hgetall(key).items() if field.startswith(b"v")]

    def leases(self, key: str) -> list[bytes]:
        """The leases on a resource."""
        return [value for field, value in self.client.hgetall(key).items() if field.startswith(b"l")]

    def overwrite(self, key: str, value: bytes) -> None:
        """Puts this in the place of each stored answer of a resource."""
        for field in self.client.hkeys(key):
            self.client.hset(key, field, value)

    def make_older(self, key: str, seconds: float) -> None:
        """Lets each stored answer of a resource be as if it had been stored so many seconds earlier."""
        for field, value in self.client.hgetall(key).items():
            entry = Entry.load(value)
            assert entry is not None
            moved = {name: getattr(entry, name) - int(seconds * 1000) for name in ("created", "soft", "hard")}
            self.client.hset(key, field, replace(entry, **moved).dump())


@pytest.fixture
def stored(valkey: Valkey) -> Iterator[Stored]:
    """An empty Valkey; but for the notes, which an app that has started already relies on."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        for key in set(client.keys()) - {NOTES.encode()}:
            client.delete(key)
        yield Stored(client)


@pytest.fixture
def cache_only(stored: Stored) -> CacheSettings:
    """Settings of an app that has a cache and no database, with an empty Valkey."""
    return CacheSettings()


@asynccontextmanager
async def running(router: APIRouter, settings: SettingsGroup) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a started app with these routes."""
    async with started(create_application(router, settings)) as client:
        yield client


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of this app, while its lifespan runs."""
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


def metric(name: str, **labels: str) -> float:
    """What Prometheus would read now."""
    return REGISTRY.get_sample_value(f"slipway_cache_{name}", labels) or 0


def states(*answers: httpx2.Response) -> list[str | None]:
    """Where the answers came from: their `X-Cache`."""
    return [answer.headers.get("X-Cache") for answer in answers]
