"""WebSockets, streams, long polls, large uploads and rare methods through nginx, with this repository's files."""

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from uvicorn.config import Config
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.deploy.files import KUBERNETES, manifests
from tests.deploy.test_nginx import certificates, conf
from tests.deploy.test_nginx_refusals import kept_in_files
from tests.nginx import Nginx, nginx_with
from tests.processes import running_api

__all__ = ["certificates"]  # a fixture

STREAMS = ("uvicorn", "tests.deploy.streams_app:app", "--port", "{port}", "--log-level", "warning")
ONE, TWO = ("web:8000",), ("fastapi1:8000", "fastapi2:8000")
FORMS = [("one server", ONE), ("many servers", TWO), ("many-servers.conf", TWO)]
MB = 1_000_000
CURL = shutil.which("curl")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The server that nginx passes requests to. Its WebSockets are pinged more often than usual."""
    with running_api(*STREAMS, "--ws-ping-interval", "0.3") as url:
        yield url


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form[0])
def nginx(server: str, request: pytest.FixtureRequest) -> Iterator[Nginx]:
    """nginx before it, with each of the files, and a second instead of a minute between two reads."""
    name, servers = request.param
    with nginx_with(hurried(conf(name)), dict.fromkeys(servers, server)) as running:
        yield running


def hurried(text: str) -> str:
    assert text.count("\nproxy_read_timeout 60s;\n") == 1
    return text.replace("proxy_read_timeout 60s;", "proxy_read_timeout 1s;")


@contextmanager
def socket_to(url: str, **options: Any) -> Iterator[tuple[ClientConnection, dict[str, str]]]:
    """A WebSocket, and the headers that the app got."""
    address = f"{url.replace('http', 'ws', 1)}/socket"
    with connect(address, max_size=None, **options) as line:
        yield line, json.loads(line.recv())


# ---- WebSockets ----


def test_a_websocket_gets_through(nginx: Nginx) -> None:
    with socket_to(nginx.url, subprotocols=["chat"]) as (line, headers):
        assert line.subprotocol == "chat"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
        for text in ("hello", "x" * 2 * MB):  # which is no body: the limit of the application is not for it
            line.send(text)
            assert line.recv() == text


def test_an_idle_websocket_is_not_cut(nginx: Nginx) -> None:
    """The server's pings are words enough."""
    with socket_to(nginx.url) as (line, _):
        time.sleep(2.5)
        line.send("still there")
        assert line.recv(timeout=5) == "still there"


def test_without_pings_it_would_be() -> None:
    """So that the test above is about them."""
    with (
        running_api(*STREAMS, "--ws-ping-interval", "0") as quiet,
        nginx_with(hurried(conf("one server")), {"web:8000": quiet}) as nginx,
        socket_to(nginx.url, ping_interval=None) as (line, _),
        pytest.raises(ConnectionClosed),
    ):
        line.recv(timeout=10)


def test_uvicorn_pings_more_often_than_nginx_waits() -> None:
    (seconds,) = re.findall(r"^proxy_read_timeout (\d+)s;", conf("one server"), re.MULTILINE)
    interval = Config("tests.deploy.streams_app:app").ws_ping_interval
    assert interval is not None
    assert interval * 2 < int(seconds)


def test_a_websocket_by_tls(server: str, certificates: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates / "fullchain.pem"))
    with nginx_with(conf("tls.conf"), dict.fromkeys(TWO, server), certificates=certificates) as nginx:
        port = int(nginx.tls_url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            socket_to("https://api.example.com", sock=plain, ssl=trusting) as (line, headers),
        ):
            line.send("hello")
            assert line.recv() == "hello"
        assert headers["x-forwarded-proto"] == "https"


@pytest.mark.parametrize("protocol", ["h2c", "websocket, h2c", "TLS/1.0"])
def test_no_other_protocol_is_begun(nginx: Nginx, protocol: str) -> None:
    """It would pass nginx's headers, limits and log."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    assert httpx2.get(f"{nginx.url}/api/v1/health", headers=headers).status_code == 200


def test_a_websocket_that_is_refused_is_told_so(nginx: Nginx) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    answer = httpx2.get(f"{nginx.url}/nosuch", headers=headers | key)
    assert answer.status_code in {403, 404}


# ---- Answers that take their time ----


@pytest.mark.parametrize("path", ["lines", "events", "rows"])
def test_a_stream_is_not_held_back(server: str, path: str) -> None:
    with nginx_with(conf("one server"), {"web:8000": server}) as nginx:
        begun = time.monotonic()
        with httpx2.stream("GET", f"{nginx.url}/{path}", timeout=20) as answer:
            parts = [(time.monotonic() - begun, part) for part in answer.iter_raw()]
    assert b"first" in parts[0][1]
    assert b"second" not in parts[0][1]
    assert parts[-1][0] - parts[0][0] > 0.8


def test_a_long_poll_that_is_too_long_is_told_so(server: str) -> None:
    with nginx_with(hurried(conf("one server")), {"web:8000": server}) as nginx:
        assert httpx2.get(f"{nginx.url}/poll?seconds=0.5", timeout=20).json() == "there"
        answer = httpx2.get(f"{nginx.url}/poll?seconds=6", timeout=20)
    assert answer.status_code == 504
    assert answer.headers["Content-Type"] == "application/problem+json"


# ---- Uploads ----


def in_parts(size: int) -> Iterator[bytes]:
    for start in range(0, size, 2**16):
        yield b"x" * min(2**16, size - start)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_route_takes_more_than_others_do(nginx: Nginx, declared: bool) -> None:
    """As its `max_body_size` says, of which nginx does not know."""
    for size in (0, 1, MB, 1_999_999, 2 * MB, 60 * MB):
        body = b"x" * size if declared else in_parts(size)
        answer = httpx2.post(f"{nginx.url}/upload", content=body, timeout=60)
        assert (answer.status_code, answer.json()) == (200, size)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("size", [2**20 + 1, 2 * MB, 60 * MB, 201 * MB])
def test_the_app_refuses_what_the_route_does_not_take(nginx: Nginx, size: int, declared: bool) -> None:
    path = "upload" if size > 200 * MB else "small"
    body = b"x" * size if declared else in_parts(size)
    answer = httpx2.post(f"{nginx.url}/{path}", content=body, timeout=60)
    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:problem-type:payload-too-large"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_nginx_keeps_nothing_of_a_large_upload(nginx: Nginx, declared: bool) -> None:
    """Whoever may send at all could fill its disk otherwise."""
    master = nginx.process.pid
    (worker,) = map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())
    seen: list[int] = []

    def watched() -> Iterator[bytes]:
        for part in in_parts(20 * MB):
            yield part
            seen.append(sum(kept_in_files(worker, nginx.folder / "body")))

    headers = {"Content-Length": str(20 * MB)} if declared else {}
    answer = httpx2.post(f"{nginx.url}/upload", content=watched(), headers=headers, timeout=60)
    assert answer.json() == 20 * MB
    assert max(seen) == 0


@pytest.mark.skipif(CURL is None, reason="needs curl")
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "of unknown length"])
def test_an_upload_by_http_2(server: str, certificates: Path, tmp_path: Path, declared: bool) -> None:
    """Where a body of unknown length has no header that says so."""
    sent = tmp_path / "sent"
    sent.write_bytes(b"x" * 20 * MB)
    with nginx_with(conf("tls.conf"), dict.fromkeys(TWO, server), certificates=certificates) as nginx:
        port = nginx.tls_url.rpartition(":")[2]
        command = [CURL or "", "--silent", "--http2", "--cacert", str(certificates / "fullchain.pem")]
        command += ["--resolve", f"api.example.com:{port}:127.0.0.1", "--write-out", " %{http_code} %{http_version}"]
        command += ["--request", "POST", "--upload-file", str(sent) if declared else "-"]
        for path, said in (("upload", f"{20 * MB} 200 2"), ("small", " 413 2")):
            with sent.open("rb") as file:
                url = f"https://api.example.com:{port}/{path}"
                done = subprocess.run([*command, url], stdin=file, capture_output=True, text=True, check=False)
            assert done.stdout.endswith(said), done


def test_who_declares_too_much_need_not_send_it(nginx: Nginx) -> None:
    head = "POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(nginx.url.rpartition(":")[2])), timeout=20) as line:
        line.sendall(head.encode())
        said = b""
        while b"HTTP/1.1 413" not in said:
            part = line.recv(65536)
            assert part, said
            said += part


def test_who_waits_to_be_asked_for_the_body_is_asked(nginx: Nginx) -> None:
    head = "POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(nginx.url.rpartition(":")[2])), timeout=20) as line:
        line.sendall(head.encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 100")
        line.sendall(b"hello")
        assert b"".join(iter(lambda: line.recv(65536), b"")).startswith(b"HTTP/1.1 200")


# ---- What else users add ----


@pytest.mark.parametrize("size", [5, 1000])
@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "PUT"])
def test_any_method_gets_through(nginx: Nginx, method: str, size: int) -> None:
    answer = httpx2.request(method, f"{nginx.url}/method", content=b"x" * size)
    assert answer.json() == f"{method} {'x' * size}"
    assert nginx.logged(answer.headers["X-Request-ID"])["method"] == method


def test_a_part_of_a_file(nginx: Nginx) -> None:
    whole = httpx2.get(f"{nginx.url}/file").content
    part = httpx2.get(f"{nginx.url}/file", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"


def test_what_ingress_nginx_is_told_refuses_nothing() -> None:
    (ingress,) = manifests(KUBERNETES / "ingress.yaml")
    told = ingress["metadata"]["annotations"]
    assert told["nginx.ingress.kubernetes.io/proxy-body-size"] == "0"
    assert told["nginx.ingress.kubernetes.io/proxy-request-buffering"] == "off"
