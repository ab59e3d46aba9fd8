"""A mail server that lets us in, one that does not, and none."""

from typing import Any

import pytest

from app.core.doctor import mail
from scripts.embedded import free_port
from tests.doctor_kit import OK, SECRET, WARNING, Settle, lines
from tests.smtp_server import SMTPServer

pytestmark = pytest.mark.anyio


async def test_a_mail_server(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SMTPServer(login=("app", SECRET)) as mails:
        where: dict[str, Any] = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": mails.port, "SMTP_SECURITY": "none"}
        assert (await lines(settle(**where, SMTP_USERNAME="app", SMTP_PASSWORD=SECRET)))["mail"].outcome is OK
        found = (await lines(settle(SMTP_PASSWORD=f"{SECRET}2")))["mail"]
        assert found.outcome is WARNING
        assert "SMTP_PASSWORD" in found.remedy
        assert mails.mails == []
        mails.answers["CONNECT"] = ""
        monkeypatch.setattr(mail, "SECONDS", 0.2)
        assert "does not answer" in (await lines(settle()))["mail"].text
    assert (await lines(settle(SMTP_PORT=free_port())))["mail"].outcome is WARNING
