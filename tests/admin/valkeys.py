"""Valkey, to look into and to stop: fixtures for tests of pages that say what they know from it."""

from collections.abc import Iterator
from typing import cast

import pytest
from redis import Redis

from app.core.config import get_settings
from scripts.embedded import Valkey, free_port, scratch_folder


@pytest.fixture
def plain(valkey: Valkey) -> Iterator[Redis]:
    """Valkey, as a plain client sees it."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        yield client


def minute_of(plain: Redis) -> int:
    """The minute it is, since 1970, by Valkey's clock."""
    seconds, _ = cast("tuple[int, int]", plain.time())
    return seconds // 60


@pytest.fixture
def own_valkey(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    """For this test alone, which stops it. To be asked for before the app."""
    with scratch_folder() as folder, Valkey(folder / "valkey", port=free_port(), durable=False) as server:
        for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
            monkeypatch.setenv(f"REDIS_{use}_PORT", str(server.port))
        yield server
    get_settings.cache_clear()
