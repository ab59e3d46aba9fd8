"""Watches the whole test run for secrets: in what is logged, in errors, in metrics, and in what jobs leave behind.

A pytest plugin. The tests' secrets are canaries: values that nothing but a leak can bring to where they are looked for.
Tokens and hashes are known by their form. A test in whose output there is one has failed.
"""

import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import httpx2
import prometheus_client
import pytest

from app.core.config import Settings
from app.core.settings.errors import variables_of
from tests.helper import PASSWORD

DUMPS = {"pg_dump"}  # holds what the database holds
SHORTEST = 12  # characters of a value that stands nowhere by chance
FORMS = {
    "a token": re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "a password's hash": re.compile(r"\$argon2id\$v="),
}


def secrets() -> dict[str, str]:
    """The values of all settings that are secret, as the environment has them now; of addresses, their passwords."""
    names = [name for name, field in variables_of(Settings).items() if "SecretStr" in str(field.annotation)]
    known = {name: os.environ[name] for name in names if name in os.environ}
    known |= {name: _password_in(value) for name, value in known.items() if "://" in value}
    return {name: value for name, value in known.items() if len(value) >= SHORTEST} | {"a user's password": PASSWORD}


def _password_in(url: str) -> str:
    """Empty for a URL that cannot be read: a test is about it."""
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""


def secrets_in(text: str) -> list[str]:
    """What is found there, by name."""
    found = [name for name, value in secrets().items() if value in text]
    return found + [name for name, form in FORMS.items() if form.search(text)]


def refuse_secrets(text: str, where: str) -> None:
    """Raises: AssertionError when there are any; it does not repeat them."""
    found = secrets_in(text)
    assert not found, f"{', '.join(found)} in {where}"


# ---- What is logged and printed, by the test's process and by those it started ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    found = secrets_in("\n".join(text for title, text in report.sections if title.startswith("Captured ")))
    if found:
        report.outcome = "failed"
        report.longrepr = f"{', '.join(found)} in the output of {report.nodeid}"
    return report


# ---- Errors and metrics, whoever asks for them ----


def pytest_configure() -> None:
    """Has every error and every page of metrics looked at that a test reads, and all output that it takes itself."""
    read, aread = httpx2.Response.read, httpx2.Response.aread

    def watched(response: httpx2.Response) -> bytes:
        return _watch(response, read(response))

    async def awatched(response: httpx2.Response) -> bytes:
        return _watch(response, await aread(response))

    setattr(httpx2.Response, "read", watched)  # noqa: B010 -- mypy knows that it is a method
    setattr(httpx2.Response, "aread", awatched)  # noqa: B010 -- the same
    communicate = subprocess.Popen.communicate

    def watched_output(process: Any, *args: Any, **kwargs: Any) -> Any:
        output = communicate(process, *args, **kwargs)
        if Path(str(process.args[0])).name in DUMPS:
            return output
        for part in filter(None, output):
            text = part.decode(errors="replace") if isinstance(part, bytes) else part
            refuse_secrets(text, f"the output of {process.args}")
        return output

    setattr(subprocess.Popen, "communicate", watched_output)  # noqa: B010 -- the same
    readouterr = pytest.CaptureFixture.readouterr

    def watched_capture(fixture: Any) -> Any:
        captured = readouterr(fixture)
        refuse_secrets(f"{captured.out}{captured.err}", "what a test has captured")
        return captured

    setattr(pytest.CaptureFixture, "readouterr", watched_capture)  # noqa: B010 -- the same


def _watch(response: httpx2.Response, body: bytes) -> bytes:
    path = response.url.path if response._request is not None else ""
    if response.status_code >= 400 or body.startswith(b"# HELP"):
        refuse_secrets(body.decode(errors="replace"), f"the answer {response.status_code} of {path}")
    return body


def pytest_sessionfinish() -> None:
    """What this process has counted, asked for or not."""
    refuse_secrets(prometheus_client.generate_latest().decode(), "the metrics")


# ---- What jobs leave behind ----

_JOBS = """
SELECT found FROM job, concat_ws(' ', function, result, error, progress) AS found
WHERE found LIKE ANY($1) OR found ~ ANY($2) LIMIT 10
"""


async def refuse_secrets_in_jobs(connection: asyncpg.Connection) -> None:
    """Looks through the table of jobs, if there is one. Raises: AssertionError."""
    if await connection.fetchval("SELECT to_regclass('job')") is None:
        return
    values = [value.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_") for value in secrets().values()]
    likely = await connection.fetch(
        _JOBS, [f"%{value}%" for value in values], [form.pattern for form in FORMS.values()]
    )
    for row in likely:
        refuse_secrets(row["found"], "a job's result")
