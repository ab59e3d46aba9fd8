"""nginx with this repository's files: what it passes on, what it refuses, what it writes."""

import json
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from app.core.config import AppSettings, Settings
from tests.conftest import opened_session
from tests.deploy.files import DEFAULT_CONF, NGINX, many_servers
from tests.e2e.test_rate_limits_behind_nginx import client_from
from tests.helper import create_superuser, signed_in
from tests.nginx import DEBIAN, IMAGE, complaints, nginx_with
from tests.processes import running_api

pytestmark = pytest.mark.anyio

API = "/api/v1"
ONE = {"web:8000": "http://127.0.0.1:1"}
TWO = {"fastapi1:8000": "http://127.0.0.1:1", "fastapi2:8000": "http://127.0.0.1:2"}
ECHO = ("uvicorn", "tests.deploy.echo_app:app", "--port", "{port}", "--log-level", "warning", "--no-proxy-headers")
CLIENT = "127.0.0.3"


def conf(name: str) -> str:
    """The files of conf.d as nginx reads them one after the other."""
    if name == "one server":
        return DEFAULT_CONF.read_text()
    if name == "many servers":
        return many_servers(DEFAULT_CONF.read_text())
    return (NGINX / "proxy.conf").read_text() + (NGINX / name).read_text()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate of our own for api.example.com, and its key."""
    folder = tmp_path_factory.mktemp("certificates")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=api.example.com", "-addext", "subjectAltName=DNS:api.example.com"]
    files = ["-keyout", "privkey.pem", "-out", "fullchain.pem"]
    subprocess.run([*command, *files], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("name", "servers"),
    [("one server", ONE), ("many servers", TWO), ("many-servers.conf", TWO), ("tls.conf", TWO)],
)
@pytest.mark.parametrize("http", [IMAGE, DEBIAN], ids=["in the image", "in Debian"])
async def test_nginx_takes_it(certificates: Path, name: str, servers: dict[str, str], http: str) -> None:
    """Whatever the main file has said before it includes this one."""
    assert complaints(conf(name), servers, certificates, http) == ""


def test_what_is_written_twice_is_the_same() -> None:
    """`default.conf` has to be usable alone; its first part is `proxy.conf`, its last `many-servers.conf`."""
    assert (NGINX / "proxy.conf").read_text() in DEFAULT_CONF.read_text()
    block = (NGINX / "many-servers.conf").read_text().partition("\n\n")[2]
    assert many_servers(DEFAULT_CONF.read_text()).endswith(block)
    assert (NGINX / "tls.conf").read_text().count(block.partition("\nserver {")[0]) == 1


def test_the_limits_are_the_app_s() -> None:
    """nginx collects what fits the default limit, and refuses nothing."""
    assert AppSettings.model_fields["MAX_BODY_BYTES"].default < 2_000_000
    assert "client_max_body_size 0;" in (NGINX / "proxy.conf").read_text()


# ---- What the server gets ----


@pytest.fixture(scope="module")
def echoed() -> Iterator[str]:
    """An nginx with one server behind it that tells what it gets."""
    # wait_for_answer asks /api/v1/health, which it answers as anything else.
    with running_api(*ECHO) as server, nginx_with(conf("one server"), {"web:8000": server}) as nginx:
        yield nginx.url


def received(url: str, headers: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in httpx2.get(url, headers=headers).json()["headers"]:
        found.setdefault(name, []).append(value)
    return found


def test_nothing_that_a_client_says_of_itself_is_passed_on(echoed: str) -> None:
    invented = "203.0.113.9"
    headers = received(
        echoed,
        {
            "X-Forwarded-For": invented,
            "X-Real-IP": invented,
            "Forwarded": f"for={invented}",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "evil.example",
            "X-Request-ID": "chosen-by-the-client",
            "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
            "tracestate": "theirs=1",
        },
    )
    assert headers["x-forwarded-for"] == headers["x-real-ip"] == ["127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert not {"forwarded", "x-forwarded-host", "connection", "traceparent", "tracestate"} & set(headers)
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"][0])


# ---- One server, with TLS and without ----


async def test_one_server(settings: Settings, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    """One test for all of it: the server takes seconds to start."""
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1")
    async with opened_session(settings) as db:
        admin = signed_in(await create_superuser(db, username="admin"), settings)
    with (
        running_api("uvicorn", "src.app.main:app", "--port", "{port}", "--no-proxy-headers") as server,
        nginx_with(conf("one server"), {"web:8000": server}) as nginx,
    ):
        async with client_from(CLIENT, nginx.url) as client:
            with subtests.test("the app sees the real address, whatever the client says"):
                form = {"username": "nobody", "password": "wrong"}
                said = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"}
                assert (await client.post(f"{API}/login", data=form, headers=said)).status_code == 401
                events = (await client.get(f"{API}/security_events", headers=admin)).json()["data"]
                assert {event["address"] for event in events} == {CLIENT}
            with subtests.test("one id in the answer and the log, and no query in it"):
                strange = {"User-Agent": 'a "quoted" \\ one'}
                answer = await client.get(f"{API}/tiers?page=1&token=sesame", headers=strange)
                line = nginx.logged(answer.headers["X-Request-ID"])
                assert (line["path"], line["status"], line["client"]) == (f"{API}/tiers", 200, CLIENT)
                assert line["upstream"] == server.removeprefix("http://")
                assert float(line["upstream_seconds"]) <= line["seconds"] + 0.002
                assert line["user_agent"] == strange["User-Agent"]
                assert "sesame" not in (nginx.folder / "access.log").read_text()
            with subtests.test("a line is JSON whatever was sent"):
                no_text = {b"User-Agent": b"\xff\xfe"}
                answer = await client.get(f"{API}/tier/%ff%22%0a?page=1", headers=no_text)
                line = nginx.logged(answer.headers["X-Request-ID"])
                assert (line["path"], line["user_agent"]) == (f"{API}/tier/%ff%22%0a", "(not ASCII)")
            with subtests.test("a body that is too large"):
                for body in (b"x" * (settings.MAX_BODY_BYTES + 1), in_parts(settings.MAX_BODY_BYTES + 1)):
                    answer = await client.post(f"{API}/user", content=body)
                    assert answer.status_code == 413
                    assert_problem(answer, "urn:problem-type:payload-too-large")
                largest = await client.post(f"{API}/user", content=b"x" * settings.MAX_BODY_BYTES)
                assert largest.status_code == 422
            with subtests.test("metrics are not for the world"):
                for path in ("/metrics", "/metrics?x", "//metrics", "/%6detrics", "/x/../metrics"):
                    answer = await client.get(path)
                    assert answer.status_code == 404, path
                    assert "slipway" not in answer.text.replace("slipway_", "")
                assert_problem(await client.get("/metrics"), "about:blank")
                assert (await client.get(f"{server}/metrics")).status_code == 200
            with subtests.test("headers as large as a token and more"):
                answer = await client.get(f"{API}/health", headers={"Cookie": f"a={'x' * 12_000}"})
                assert answer.status_code == 200
            with subtests.test("nobody says which version"):
                assert (await client.get("/metrics")).headers["Server"] == "nginx"


async def test_no_server(settings: Settings) -> None:
    """The answer is a problem document, with the id under which the log has it."""
    with running_api(*ECHO) as server:
        stack = ExitStack()
        nginx = stack.enter_context(nginx_with(conf("one server"), {"web:8000": server}))
    with stack:
        answer = httpx2.get(f"{nginx.url}{API}/health")
        assert answer.status_code == 502
        assert answer.headers["Retry-After"] == "2"
        assert_problem(answer, "about:blank")
        assert nginx.logged(answer.headers["X-Request-ID"])["status"] == 502


async def test_tls(certificates: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates / "fullchain.pem"))
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    with (
        running_api(*ECHO) as server,
        nginx_with(conf("tls.conf"), dict.fromkeys(TWO, server), certificates=certificates) as nginx,
    ):
        moved = httpx2.get(f"{nginx.url}{API}/tiers?page=2", headers={"Host": "evil.example"})
        assert (moved.status_code, moved.headers["Location"]) == (308, f"https://api.example.com{API}/tiers?page=2")
        for url in (nginx.url, nginx.tls_url.replace("https:", "http:")):
            refused = httpx2.get(url, headers={"Host": "a b"})
            assert refused.status_code == 400
            assert_problem(refused, "about:blank")
        port = int(nginx.tls_url.rpartition(":")[2])
        with connected(port) as plain, trusting.wrap_socket(plain, server_hostname="api.example.com") as secured:
            assert secured.selected_alpn_protocol() == "h2"
            assert secured.version() == "TLSv1.3"
        trusting.set_alpn_protocols(["http/1.1"])
        with connected(port) as plain, trusting.wrap_socket(plain, server_hostname="api.example.com") as secured:
            secured.sendall(b"GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: secured.recv(65536), b"")).decode()
            assert "strict-transport-security: max-age=63072000" in answer.lower()
            assert '["x-forwarded-proto", "https"]' in answer
        with connected(port) as plain, pytest.raises(ssl.SSLError):
            trusting.wrap_socket(plain, server_hostname="other.example.com")
        assert "strict-transport-security" not in moved.headers


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def assert_problem(answer: httpx2.Response, kind: str) -> None:
    """It has the form of the app's errors, and is the answer to this very request."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(answer.text)
    assert (problem["type"], problem["status"]) == (kind, answer.status_code)
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}


async def in_parts(size: int) -> AsyncIterator[bytes]:
    """A body whose length nobody is told."""
    for _ in range(8):
        yield b"x" * (size // 8 + 1)
