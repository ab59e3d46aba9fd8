"""Settings for a test to change, and a Valkey for it to set up in any way."""

from collections.abc import Iterator

import pytest

from app.core.config import Settings
from scripts.embedded import scratch_folder
from tests.doctor_kit import Settle, settling
from tests.redis_topologies import Node


@pytest.fixture
def settle(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settle]:
    """Settings in which these values have changed."""
    yield settling(monkeypatch)
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
