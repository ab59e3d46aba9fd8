"""Whom the app believes about a client's address."""

import pytest

from app.core.doctor import Outcome
from tests.doctor_kit import FAILED, OK, Settle, lines

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("trusted", "outcome"),
    [
        ("", OK),
        ("10.0.0.0/8,fc00::/7,unix", OK),
        ("104.16.0.0/13,2400:cb00::/32", OK),
        ("0.0.0.0/0", FAILED),
        ("10.0.0.0/8,::/0", FAILED),
        ("20.0.0.0/8", FAILED),
        ("0.0.0.0/1", FAILED),
    ],
)
async def test_whom_one_believes(settle: Settle, trusted: str, outcome: Outcome) -> None:
    found = (await lines(settle(TRUSTED_PROXIES=trusted)))["proxies"]
    assert found.outcome is outcome
    if outcome is FAILED:
        assert "have TRUSTED_PROXIES name the networks of your own proxies" in found.remedy
