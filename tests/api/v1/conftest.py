"""What tests of several routes need."""

from collections.abc import AsyncIterator

import pytest

from tests.smtp_server import SMTPServer


@pytest.fixture
async def mail_server() -> AsyncIterator[SMTPServer]:
    """A mail server that keeps what it is given."""
    async with SMTPServer() as server:
        yield server
