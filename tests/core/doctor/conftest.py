"""Settings for a test to change, and a Valkey for it to set up in any way."""

from collections.abc import Iterator

import pytest

from app.core.config import Settings, get_settings
from scripts.embedded import scratch_folder
from tests.doctor_kit import Settle
from tests.redis_topologies import Node


@pytest.fixture
def settle(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settle]:
    """Settings in which these values have changed."""

    def settle(**values: object) -> Settings:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        get_settings.cache_clear()
        return get_settings()

    yield settle
    monkeypatch.undo()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A Valkey of this module alone, for tests to set up in any way; `server` undoes that."""
    with scratch_folder() as folder, Node(folder / "valkey") as node:
        yield node


@pytest.fixture
def server(node: Node) -> Iterator[Node]:
    """The same, which is afterwards as it was."""
    yield node
    node.client.execute_command("REPLICAOF", "NO", "ONE")
    node.client.config_set("maxmemory", 0)
    node.client.config_set("maxmemory-policy", "noeviction")
    node.client.config_set("requirepass", "")
