"""Mail in tests: sent by the real jobs of a real worker in this process to `smtp_server.SMTPServer`."""

import re
from typing import Any

import pytest
from sqlmodel import SQLModel, col, func, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings, get_settings
from app.core.db.database import reading
from app.core.utils.queue import Job, JobState
from app.core.worker.testing import drain_jobs
from tests.smtp_server import ReceivedMail, SMTPServer

_TOKEN = re.compile(r"(?<![\w-])[\w-]{43}(?![\w-])", re.ASCII)


def settings_for(server: SMTPServer, monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    """Settings that send to this server, for the app and for the jobs, which read them by themselves."""
    address = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(server.port), "SMTP_SECURITY": "none"}
    for name, value in (address | values).items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    return get_settings()


async def do_mail_jobs(**options: Any) -> None:
    """Does everything that waits, with the settings of the real worker; the database is the running app's."""
    await drain_jobs(allow_dead=True, **options)


async def jobs_waiting() -> int:
    """How many jobs wait for a worker."""
    async with reading() as db:
        return (await db.exec(select(func.count()).where(col(Job.state) == JobState.QUEUED))).one()


def text_of(mail: ReceivedMail) -> str:
    """What a person reads."""
    return str(mail.message.get_content())


def token_in(written: str) -> str:
    """The one token in a text."""
    (token,) = set(_TOKEN.findall(written))
    return str(token)


async def dump(db: AsyncSession) -> str:
    """All that is in the database, as text."""
    connection = await db.connection()
    rows: list[str] = []
    for table in SQLModel.metadata.sorted_tables:
        name = connection.dialect.identifier_preparer.format_table(table)
        rows += await connection.scalars(text(f"SELECT t::text FROM {name} AS t"))  # noqa: S608 -- our names
    return "\n".join(rows)
