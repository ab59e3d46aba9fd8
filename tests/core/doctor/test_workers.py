"""Workers, by the sign of life that they leave."""

import pytest

from tests.doctor_kit import OK, Settle, lines
from tests.redis_topologies import Node

pytestmark = pytest.mark.anyio


async def test_arqs_own_worker_says_it_in_words(settle: Settle, server: Node) -> None:
    server.client.set("arq:queue:health-check", "Nov-25 12:00:00 j_complete=0", px=31_000)
    found = (await lines(settle(REDIS_QUEUE_PORT=server.port)))["workers: arq:queue"]
    server.client.flushall()
    assert found.outcome is OK
