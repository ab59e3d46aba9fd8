"""Traces: a request, its statements and its jobs are one, under the request's id; and no client has a say in it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import APIRouter, FastAPI
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from sqlalchemy import text
from structlog.testing import capture_logs

from app.api import build_router
from app.api.dependencies import SessionDep
from app.core.config import Settings, SettingsError, TracingSettings
from app.core.setup import create_application
from app.core.tracing import current_traceparent
from app.core.utils import queue
from app.core.worker.options import job
from scripts.embedded import Valkey
from tests.conftest import client_of, second_session
from tests.durable_jobs import becomes, job_of, run, working
from tests.helper import create_user, signed_in
from tests.otlp_receiver import Receiver, Span, receiving
from tests.processes import ROOT, running_api, running_worker

pytestmark = pytest.mark.anyio

SECRET = "hunter2-in-a-row"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def traced(receiver: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The app's settings, with this collector."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRET}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1")
    return Settings()


def small_router() -> APIRouter:
    router = APIRouter(prefix="/small")

    @router.get("/rows/{name}")
    async def rows(name: str, db: SessionDep) -> int:
        found = await (await db.connection()).scalar(text("SELECT length(:given)"), {"given": name})
        return int(found)

    @router.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError(SECRET)

    @router.get("/broken/{name}")
    async def broken(name: str, db: SessionDep) -> None:
        await (await db.connection()).execute(
            text("SELECT no_such_function(CAST(:given AS integer))"), {"given": int(name)}
        )

    @router.get("/gone")
    async def gone(db: SessionDep) -> None:
        await (await db.connection()).execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    @router.post("/jobs")
    async def enqueues(db: SessionDep, function: str) -> str:
        return (await queue.enqueue(db, function, SECRET)).job_id

    return router


@asynccontextmanager
async def running(settings: Settings, *, through_proxy: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
    """A small app, asked as nginx would, or directly."""
    app = create_application(small_router(), settings)
    peer = ("127.0.0.1" if through_proxy else "192.0.2.7", 1234)
    async with app.router.lifespan_context(app), client_at(app, peer) as client:
        yield client


def client_at(app: FastAPI, peer: tuple[str, int]) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=app, client=peer, raise_app_exceptions=False)
    headers = {"X-Forwarded-For": "203.0.113.9"}
    return httpx2.AsyncClient(transport=transport, base_url="http://test/small/", headers=headers)


def of_kind(spans: list[Span], kind: int) -> list[Span]:
    return [span for span in spans if span.kind == kind]


def servers(spans: list[Span]) -> list[Span]:
    return of_kind(spans, Wire.SPAN_KIND_SERVER)


# ---- A request ----


async def test_a_request_and_its_statements_are_a_trace_under_its_id(receiver: Receiver, traced: Settings) -> None:
    request_id = token_hex(16)
    async with running(traced) as client:
        answer = await client.get(f"rows/{SECRET}", params={"token": SECRET}, headers={"X-Request-ID": request_id})
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, request_id)
    (server,) = servers(receiver.spans)
    assert server.name == "GET /small/rows/{name}"
    assert (server.trace_id, server.parent_id, server.service) == (request_id, "", "slipway")
    assert server.attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.route": "/small/rows/{name}",
        "http.response.status_code": 200,
    }
    (statement,) = [span for span in receiver.spans if span.name == "SELECT"]
    assert (statement.trace_id, statement.parent_id) == (request_id, server.span_id)
    assert "SELECT length($1" in statement.attributes["db.query.text"]
    assert receiver.headers[0]["x-key"] == SECRET
    assert not any(SECRET.encode() in body for body in receiver.bodies)


async def test_what_goes_wrong_is_there_without_what_it_says(receiver: Receiver, traced: Settings) -> None:
    async with running(traced) as client:
        assert (await client.get("fails")).status_code == 500
        assert (await client.get("broken/4711")).status_code == 500
        assert (await client.get("gone")).status_code == 503
        assert (await client.get("nothing")).status_code == 404
    fails, broken, gone, nothing = servers(receiver.spans)
    assert fails.failed
    assert fails.attributes["http.response.status_code"] == 500
    assert fails.attributes["error.type"] == "ZeroDivisionError"
    (event,) = fails.events
    assert event["exception.type"] == "ZeroDivisionError"
    assert "in fails\n    raise ZeroDivisionError" in event["exception.stacktrace"]
    assert broken.failed
    (statement,) = [span for span in receiver.spans if span.parent_id == broken.span_id]
    assert statement.failed
    assert statement.attributes["db.response.status_code"] == "42883"  # undefined_function
    (statement,) = [span for span in receiver.spans if span.parent_id == gone.span_id]
    assert (statement.failed, gone.failed, gone.attributes["http.response.status_code"]) == (True, True, 503)
    assert (nothing.name, nothing.failed) == ("GET", False)
    assert not any(value in body for body in receiver.bodies for value in (SECRET.encode(), b"4711"))


async def test_probes_and_what_a_process_does_by_itself_are_no_traces(receiver: Receiver, traced: Settings) -> None:
    app = create_application(build_router(traced), traced)
    async with app.router.lifespan_context(app), client_of(app) as client:
        for path in ("health", "ready", "http://test/metrics"):
            assert (await client.get(path)).status_code == 200
        await asyncio.sleep(0.2)
        await client.get("tiers")
    assert [span.name for span in servers(receiver.spans)] == ["GET /api/v1/tiers"]
    assert {span.trace_id for span in receiver.spans} == {servers(receiver.spans)[0].trace_id}


# ---- Whose word counts ----


@pytest.mark.parametrize("through_proxy", [True, False])
async def test_only_a_trusted_proxy_says_what_the_trace_is_called(
    through_proxy: bool, receiver: Receiver, traced: Settings
) -> None:
    request_id, foreign = token_hex(16), token_hex(16)
    headers = {"X-Request-ID": request_id, "traceparent": f"00-{foreign}-{token_hex(8)}-01"}
    async with running(traced, through_proxy=through_proxy) as client:
        with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            answer = await client.get("rows/a", headers=headers)
    assert answer.headers["X-Request-ID"] == request_id
    (server,) = servers(receiver.spans)
    assert server.parent_id == ""
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["request_id"], line.get("trace_id", request_id)) == (request_id, server.trace_id)
    assert (server.trace_id == request_id) is through_proxy
    assert server.trace_id != foreign


async def test_an_id_of_our_own_is_the_traces_whoever_asks(receiver: Receiver, traced: Settings) -> None:
    async with running(traced, through_proxy=False) as client:
        answers = [await client.get("rows/a", headers={"X-Request-ID": given}) for given in ("", "!")]
        named = await client.get("rows/a", headers={"X-Request-ID": "a-name-of-mine"})
    assert [span.trace_id for span in servers(receiver.spans)][:2] == [
        answer.headers["X-Request-ID"] for answer in answers
    ]
    assert len(servers(receiver.spans)[2].trace_id) == 32
    assert named.headers["X-Request-ID"] == "a-name-of-mine"


async def test_the_share_that_is_exported_is_the_settings(
    receiver: Receiver, traced: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    low, high = "0" * 16 + "1" + "0" * 15, "0" * 16 + "f" * 16  # by the lower half of the id
    async with running(Settings()) as client:
        for request_id in (low, high):
            headers = {"X-Request-ID": request_id, "traceparent": f"00-{request_id}-{token_hex(8)}-01"}
            assert (await client.get("rows/a", headers=headers)).status_code == 200
    assert {span.trace_id for span in receiver.spans} == {low}


# ---- Jobs ----


async def test_a_job_is_in_the_trace_of_who_has_enqueued_it(receiver: Receiver, traced: Settings) -> None:
    async def tries(ctx: dict[Any, Any], secret: str) -> str:
        await (await ctx["db"].connection()).execute(text("SELECT length(:given)"), {"given": secret})
        if ctx["job_try"] == 1:
            raise ConnectionError(secret)
        return secret

    request_id = token_hex(16)
    async with running(traced) as client:
        answer = await client.post("jobs", params={"function": "tries"}, headers={"X-Request-ID": request_id})
        job_id = answer.json()
        with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            async with working(job(tries, name="tries", first_retry=0)):
                done = await becomes(job_id, "succeeded")
    (server,) = servers(receiver.spans)
    assert done.traceparent == f"00-{request_id}-{server.span_id}-01"
    first, second = attempts = of_kind(receiver.spans, Wire.SPAN_KIND_CONSUMER)
    assert {(span.name, span.trace_id, span.parent_id) for span in attempts} == {
        ("job tries", request_id, server.span_id)
    }
    assert (first.attributes["job.result"], first.attributes["job.attempt"], first.failed) == ("retried", 1, True)
    assert (second.attributes["job.result"], second.attributes["job.attempt"], second.failed) == ("succeeded", 2, False)
    assert first.events[0]["exception.type"] == "ConnectionError"
    for attempt in attempts:
        assert any("length" in s.attributes["db.query.text"] for s in receiver.spans if s.parent_id == attempt.span_id)
    ended = [line for line in lines if line["event"] == "job ended"]
    assert [line["trace_id"] for line in ended] == [request_id, request_id]
    assert not any(SECRET.encode() in body for body in receiver.bodies)


async def test_without_tracing_a_job_has_no_trace_and_a_broken_one_is_no_error(
    settings: Settings, receiver: Receiver, traced: Settings
) -> None:
    async def fine(ctx: dict[Any, Any], _: str) -> None:
        seen.append(current_traceparent())

    seen: list[str | None] = []

    async with running(settings) as client:
        untraced = (await client.post("jobs", params={"function": "fine"})).json()
        assert (await job_of(untraced)).traceparent is None
        await run("UPDATE job SET traceparent = '00-nonsense'")
        async with working(job(fine, name="fine")):
            await becomes(untraced, "succeeded")
    async with running(traced) as client:
        later = (await client.post("jobs", params={"function": "fine"})).json()
        await run("UPDATE job SET traceparent = '00-nonsense' WHERE id = :id", id=later)
        async with working(job(fine, name="fine")):
            await becomes(later, "succeeded")
    (attempt,) = of_kind(receiver.spans, Wire.SPAN_KIND_CONSUMER)
    assert attempt.parent_id == ""
    assert seen == [None, f"00-{attempt.trace_id}-{attempt.span_id}-01"]


# ---- Real processes ----


async def test_a_real_server_and_a_real_worker_are_one_trace(
    receiver: Receiver, traced: Settings, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "staging")
    request_id = token_hex(16)
    async with create_caller(traced) as headers:
        with running_api() as url, running_worker(valkey.port):
            async with httpx2.AsyncClient(base_url=url) as client:
                forwarded = {"X-Request-ID": request_id, "X-Forwarded-For": "203.0.113.9", **headers}
                answer = await client.post("/api/v1/tasks/task", params={"message": SECRET}, headers=forwarded)
                assert answer.status_code == 201, answer.text
            await asyncio.to_thread(receiver.until, lambda spans: servers(spans))
        # The sample job takes 5 seconds; a worker that is stopped puts it back, and says that, too.
        spans = await asyncio.to_thread(receiver.until, lambda spans: of_kind(spans, Wire.SPAN_KIND_CONSUMER))
    (server,) = servers(spans)
    (attempt,) = of_kind(spans, Wire.SPAN_KIND_CONSUMER)
    assert (server.trace_id, attempt.trace_id, attempt.parent_id) == (request_id, request_id, server.span_id)
    inserts = [span for span in spans if span.name == "INSERT" and span.parent_id == server.span_id]
    assert any("INTO job" in span.attributes["db.query.text"] for span in inserts)
    token = headers["Authorization"].partition(" ")[2]
    assert not any(value.encode() in body for body in receiver.bodies for value in (SECRET, token))


@asynccontextmanager
async def create_caller(settings: Settings) -> AsyncIterator[dict[str, str]]:
    """The headers of somebody who is signed in at an app in another process."""
    app = create_application(APIRouter(), settings)
    async with app.router.lifespan_context(app):
        async with second_session() as db:
            user = await create_user(db)
        headers = signed_in(user, settings)
    yield headers


# ---- On and off ----


def test_while_it_is_off_nothing_of_the_sdk_is_imported(settings: Settings) -> None:
    code = """
import sys
sys.path.insert(0, "src")
import app.main, app.core.worker.settings
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_start_without_what_it_needs_is_refused_in_one_line(settings: Settings) -> None:
    code = """
import sys
sys.path.insert(0, "src")
sys.modules["opentelemetry.exporter"] = None  # as if it were not installed
import app.main
"""
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, and tracing is not installed" in line
    assert "requirements-tracing.txt" in line


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "ftp://collector", f"http://user:{SECRET}@collector:4318", "http://"]
)
def test_an_address_that_is_none_is_refused_and_not_shown(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT must be the address") as refused:
        TracingSettings(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert SECRET not in str(refused.value)
    assert SECRET not in repr(TracingSettings(OTEL_EXPORTER_OTLP_HEADERS=f"a={SECRET}"))


async def test_a_collector_that_hangs_does_not_hold_up_the_end(receiver: Receiver, traced: Settings) -> None:
    receiver.may_answer.clear()
    with capture_logs() as lines:
        async with running(traced) as client:
            assert (await client.get("rows/a")).status_code == 200
            began = time.monotonic()
    assert time.monotonic() - began < 30  # and not the 60 seconds that it would have had to wait
    assert "the last spans are not exported" in json.dumps(lines)
    receiver.may_answer.set()
