"""An application with one of everything that applications add, under uvicorn and under gunicorn, with its worker."""

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis import Case
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import positive_data_acceptance
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.core.config import get_settings
from app.models.user import User
from scripts.embedded import Valkey
from tests.conftest import Execute, cloned_database, opened_session
from tests.helper import create_tier, create_user, signed_in
from tests.processes import ROOT, running_api, running_worker
from tests.schema_checks import excluded_checks

pytestmark = pytest.mark.anyio

GUNICORN = (
    *("gunicorn", "-c", str(ROOT / "src" / "gunicorn.conf.py"), "tests.kitchen_sink.main:app", "-w", "2"),
    *("-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"),
)
UVICORN = ("uvicorn", "tests.kitchen_sink.main:app", "--port", "{port}", "--log-level", "warning")


@dataclass
class Sink:
    """The running application.

    Attributes:
        url: its address, without the API's prefix.
        headers: of a signed-in user.
        valkey: the server of its queue.
    """

    url: str
    headers: dict[str, str]
    valkey: Valkey

    def ask(self, method: str, path: str, *, user: bool = True, **options: Any) -> httpx2.Response:
        """Send a request, as the user unless told otherwise. A path without a slash is one of the sink's own."""
        full = path if path.startswith("/") else f"/api/v1/sink/{path}"
        headers = (self.headers if user else {}) | options.pop("headers", {})
        return httpx2.request(method, f"{self.url}{full}", headers=headers, timeout=30, **options)


@pytest.fixture(scope="module", params=[UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
def sink(request: pytest.FixtureRequest, execute: Execute, migrated_template: str, valkey: Valkey) -> Iterator[Sink]:
    with pytest.MonkeyPatch.context() as monkeypatch, cloned_database(execute, monkeypatch, migrated_template):
        subprocess.run([sys.executable, "-m", "tests.kitchen_sink.tables"], cwd=ROOT, check=True)
        user = asyncio.run(_create_user())
        with running_api(*request.param) as url:
            yield Sink(url, signed_in(user, get_settings()), valkey)


async def _create_user() -> User:
    async with opened_session(get_settings()) as db:
        await create_tier(db)
        return await create_user(db, username="author")


def test_every_type_of_column_is_written_and_read(sink: Sink) -> None:
    created = sink.ask("POST", "everything", json={"price": "12.30", "status": "published", "tags": ["a", "b"]})
    assert created.status_code == 201, created.text
    row = created.json()
    expected = {
        "price": "12.30",
        "status": "published",
        "tags": ["a", "b"],
        "exact": "0.1",
        "money": "1.5",
        "note": "several\nlines",
        "duration": "P1DT12H",
        "priority": 1,
        "renamed": "x",
        "twice": 4,
    }
    assert {name: row[name] for name in expected} == expected
    assert sink.ask("GET", f"everything/{row['id']}", user=False).json() == row
    assert row in sink.ask("GET", "everything", user=False, params={"items_per_page": 100}).json()["data"]


@pytest.mark.parametrize("id_", [2**31, 2**63, 10**30, -(2**31) - 1])
def test_an_id_that_the_database_refuses_is_the_caller_s_fault(sink: Sink, id_: int) -> None:
    for path in (f"everything/{id_}", f"article/{id_}", f"article/1/remark/{id_}"):
        refused = sink.ask("GET", path, user=False)
        assert refused.status_code == 422, path
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert str(id_) not in refused.text


def test_a_resource_with_relations_a_cache_a_limit_and_a_job(sink: Sink) -> None:
    created = sink.ask("POST", "article", json={"title": f"Of mice {time.time_ns()}"})
    assert created.status_code == 201, created.text
    article = created.json()
    assert article["remarks"] == []
    assert sink.ask("POST", "article", json={"title": article["title"]}).status_code == 409
    path = f"article/{article['id']}"
    assert sink.ask("GET", path, user=False).headers["X-Cache"] == "MISS"
    assert sink.ask("GET", path, user=False).headers["X-Cache"] == "HIT"
    remark = sink.ask("PUT", f"{path}/remark/7", json={"body": "several\nlines"})
    assert remark.status_code == 200, remark.text
    assert sink.ask("GET", path, user=False).json()["remarks"] == [remark.json()]
    assert sink.ask("GET", f"{path}/remark/7").json() == remark.json()
    taken = sink.ask("PUT", f"{path}/remark/7", json={"body": "again"})
    assert (taken.status_code, taken.json()["code"], taken.json()["number"]) == (409, "REMARK_EXISTS", 7)
    assert sink.ask("PUT", f"{path}/remark/8", json={"body": "a\x00b"}).status_code == 422
    assert sink.ask("DELETE", path).status_code == 204
    assert sink.ask("GET", path, user=False).status_code == 404


def test_the_application_follows_what_happens_to_users(sink: Sink) -> None:
    renamed = sink.ask("PATCH", "/api/v1/user/author", json={"name": f"Author {time.time_ns() % 10**9}"})
    assert renamed.status_code == 200, renamed.text
    rows = sink.ask("GET", "everything", params={"items_per_page": 100}).json()["data"]
    assert "author: name" in {row["line"] for row in rows}
    assert sink.ask("GET", "report").status_code == 200


def test_files_and_streams(sink: Sink) -> None:
    large = io.BytesIO(b"x" * 2_000_000)
    received = sink.ask("POST", "upload", files={"file": ("large.bin", large)})
    assert (received.status_code, received.json()) == (201, {"size": 2_000_000})
    too_large = sink.ask("POST", "upload", files={"file": ("large.bin", io.BytesIO(b"x" * 3_500_000))})
    assert too_large.status_code == 413
    part = sink.ask("GET", "file", headers={"Range": "bytes=0-2"})
    assert (part.status_code, part.text) == (206, '"""')
    for unusable, status in (("bytes=9999999-", 416), ("bytes=x", 400)):
        refused = sink.ask("GET", "file", headers={"Range": unusable})
        assert (refused.status_code, refused.headers["Content-Type"]) == (status, "application/problem+json")
    assert len(sink.ask("GET", "stream").text.splitlines()) == 10


def test_errors_of_every_form(sink: Sink) -> None:
    teapot = sink.ask("GET", "teapot")
    assert (teapot.status_code, teapot.json()["code"], teapot.json()["sizes"]) == (418, "TEAPOT", [1, 2])
    assert teapot.headers["X-Teapot"] == "yes"
    nothing = sink.ask("DELETE", "nothing")
    assert (nothing.status_code, nothing.content) == (204, b"")
    quota = sink.ask("GET", "quota")
    assert (quota.status_code, quota.json()) == (402, {"quota": 0})
    crash = sink.ask("GET", "/crash")
    assert (crash.status_code, crash.json()) == (500, {"unexpected": "ZeroDivisionError"})
    embargo = sink.ask("GET", "teapot", headers={"X-Embargo": "1"})
    assert (embargo.status_code, embargo.headers["Content-Type"]) == (451, "application/problem+json")
    for answer in (teapot, nothing, quota, crash, embargo):
        assert answer.headers["X-Request-ID"]


def test_the_application_s_middleware_marks_answers_and_makes_them_private(sink: Sink) -> None:
    plain = sink.ask("GET", "language", user=False)
    assert plain.headers["X-Published-By"] == "kitchen sink"
    assert plain.headers["Cache-Control"] == "public, max-age=30"
    assert "Accept-Language" in plain.headers["Vary"]
    for private in (
        sink.ask("GET", "tenant?key=k", user=False),
        sink.ask("GET", "where", user=False),
        sink.ask("GET", "language", user=False, headers={"X-Visit": "1"}),
        sink.ask("GET", "keyed", user=False, headers={"X-Publishing-Key": "let me in"}),
    ):
        assert private.headers["Cache-Control"] == "private, no-store"


def test_a_mounted_application_has_sign_in_limits_and_transactions(sink: Sink) -> None:
    assert sink.ask("GET", "/sub/whoami", user=False).status_code == 401
    known = sink.ask("GET", "/sub/whoami")
    assert (known.status_code, known.json()) == (200, {"username": "author"})
    assert "RateLimit" in known.headers
    for _ in range(5):
        created = sink.ask("POST", "/sub/everything")
        assert created.status_code == 201, created.text
        assert sink.ask("GET", f"everything/{created.json()['id']}").status_code == 200
    assert sink.ask("GET", "/static/main.py").status_code == 200
    assert sink.ask("GET", "/static/absent").headers["Content-Type"] == "application/problem+json"


async def test_a_websocket_has_sign_in_and_the_database(sink: Sink) -> None:
    url = f"{sink.url.replace('http', 'ws', 1)}/api/v1/sink/echo"
    async with connect(url, additional_headers=sink.headers, proxy=None) as socket:
        for message in ("one", "two"):
            await socket.send(message)
            answer = json.loads(await socket.recv())
            assert (answer["from"], answer["message"]) == ("author", message)
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, proxy=None)
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["Content-Type"] == "application/problem+json"


def test_the_documentation_and_the_console_are_there(sink: Sink) -> None:
    assert "/api/v1/sink/article/{id}" in sink.ask("GET", "/openapi.json").json()["paths"]
    assert sink.ask("GET", "/docs").status_code == 200
    assert sink.ask("GET", "/api/v1/ready").json()["status"] == "ready"
    assert sink.ask("GET", "/admin/login").status_code == 200


def test_its_worker_runs_its_jobs(sink: Sink) -> None:
    with running_worker(sink.valkey.port, "tests.kitchen_sink.worker.WorkerSettings"):
        created = sink.ask("POST", "article", json={"title": f"Three words {time.time_ns()}"})
        assert created.status_code == 201, created.text
        done = _wait_for(lambda: asyncio.run(_results("count_words")))
    assert 3 in done


def _wait_for(look: Callable[[], list[Any]], seconds: float = 30) -> list[Any]:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


async def _results(function: str) -> list[Any]:
    from sqlmodel import select

    from app.core.utils.queue import Job

    async with opened_session(get_settings()) as db:
        jobs = (await db.exec(select(Job).where(Job.function == function))).all()
        return [job.result for job in jobs if job.finished_at is not None]


# ---- Conformance ----


@pytest.fixture
def schema(sink: Sink, request: pytest.FixtureRequest) -> BaseSchema:
    """The document's own paths."""
    request.node._nodeid = request.node.nodeid  # Schemathesis looks for it where pytest 9.2 no longer has it.
    document = sink.ask("GET", "/openapi.json").json()
    own = {path: operations for path, operations in document["paths"].items() if path.startswith("/api/v1/sink")}
    assert len(own) >= 11
    return schemathesis.openapi.from_dict({**document, "paths": own})


@schemathesis.pytest.from_fixture("schema").parametrize()
@hypothesis_settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_every_answer_is_one_that_the_schema_describes(case: "Case[Any]", sink: Sink) -> None:
    # Its ids have no bounds in the schema: those that no row can have are 422.
    excluded = [positive_data_acceptance, *excluded_checks(case.operation.schema.raw_schema, case)]
    for headers in ({}, sink.headers):
        case.call_and_validate(base_url=sink.url, headers=headers, excluded_checks=excluded)
