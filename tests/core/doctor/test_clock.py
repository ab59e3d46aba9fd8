"""Clocks that differ from ours."""

import re
import time
from math import inf

import pytest

from app.core.doctor import Outcome, clock
from app.core.doctor.clock import Clock
from tests.doctor_kit import FAILED, OK, Settle, lines

pytestmark = pytest.mark.anyio


async def test_a_clock_that_is_wrong(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "wall_clock", lambda: time.time() - 60)
    found = await lines(settle())
    for server in ("database", "valkey (cache, limits, queue)"):
        assert found[f"clock: {server}"].outcome is FAILED
        seconds = re.search(r"it is ([0-9.]+) s ahead", found[f"clock: {server}"].text)
        assert seconds is not None
        assert float(seconds[1]) == pytest.approx(60, abs=2)
        assert "NTP" in found[f"clock: {server}"].remedy


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "outcome"), [(1.9, 0, OK), (2.1, 0, FAILED), (-2.1, 0, FAILED), (9, inf, OK), (3, 2, OK)]
)
def test_a_slow_answer_says_little_about_a_clock(ahead: float, uncertainty: float, outcome: Outcome) -> None:
    assert clock.judge_clock("server", Clock(ahead, uncertainty)).outcome is outcome
