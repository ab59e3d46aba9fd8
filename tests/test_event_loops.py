"""The loop of the tests: it ends, whatever has been left open, and says what that is."""

import asyncio
import sys
from typing import Any

import pytest

from scripts.embedded import Valkey
from tests.event_loops import Uvloop


@pytest.mark.parametrize("close", [True, False])
def test_what_is_left_open_is_told_of_and_closed(valkey: Valkey, monkeypatch: pytest.MonkeyPatch, close: bool) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with asyncio.Runner(loop_factory=Uvloop) as runner:
        loop = runner.get_loop()
        transport, _ = runner.run(loop.create_connection(asyncio.Protocol, "127.0.0.1", valkey.port))
        name = repr(transport)
        if close:
            transport.close()
    assert [name in str(found.exc_value) for found in told] == [True] * (not close)
