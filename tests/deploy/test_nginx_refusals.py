"""What nginx says itself, what it keeps of an upload, and whom it believes, with this repository's files."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from tests.deploy.files import DEFAULT_CONF, KUBERNETES, NGINX, many_servers
from tests.nginx import Nginx, nginx_with
from tests.processes import START_SECONDS, running_api

ECHO = ("uvicorn", "tests.deploy.echo_app:app", "--port", "{port}", "--log-level", "warning", "--no-proxy-headers")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that tells what it gets."""
    with running_api(*ECHO) as url:
        yield url


@pytest.fixture(scope="module")
def nginx(server: str) -> Iterator[Nginx]:
    """`default.conf` before it."""
    with nginx_with(DEFAULT_CONF.read_text(), {"web:8000": server}) as running:
        yield running


def connected(nginx: Nginx) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(nginx.url.rpartition(":")[2])), timeout=20)


def said_to(nginx: Nginx, sent: bytes) -> tuple[int, str, str]:
    """Status, headers and body of the answer to these bytes."""
    with connected(nginx) as line:
        line.sendall(sent)
        line.shutdown(socket.SHUT_WR)
        head, _, body = b"".join(iter(lambda: line.recv(65536), b"")).decode().partition("\r\n\r\n")
    return int(head.split()[1]), head, body


@pytest.mark.parametrize(
    ("sent", "status", "method"),
    [
        (b"not HTTP at all\r\n\r\n", 400, ""),
        (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400, ""),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "GET"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"x" * 20_000 + b"\r\n\r\n", 400, "GET"),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 404, "POST"),
        (b"GET /@problem HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404, "GET"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "TRACE"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "GET"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: other\r\n\r\n", 501, "POST"),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "GET"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
def test_whatever_it_refuses_it_says_as_the_app_would(nginx: Nginx, sent: bytes, status: int, method: str) -> None:
    """And writes down which method was asked for."""
    found, head, body = said_to(nginx, sent)
    assert found == status
    assert "Content-Type: application/problem+json" in head
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == status
    assert f"X-Request-ID: {problem['request_id']}" in head
    line = nginx.logged(problem["request_id"])
    assert (line["status"], line["method"]) == (status, method)


def test_a_request_is_logged_once_and_without_what_nobody_may_read(nginx: Nginx) -> None:
    """The main file has a log of its own, with queries and the Referer, which is not to be kept beside ours."""
    answer = httpx2.get(f"{nginx.url}/?token=sesame", headers={"Referer": "https://example.com/?token=sesame"})
    assert answer.status_code == 200
    assert httpx2.get(f"{nginx.url}/metrics?token=sesame").status_code == 404
    nginx.logged(re.findall(r'"x-request-id", "(\w+)"', answer.text)[0])
    assert (nginx.folder / "main.log").read_text() == ""
    assert "sesame" not in (nginx.folder / "access.log").read_text()


@pytest.mark.parametrize("name", ["default.conf", "many servers", "many-servers.conf", "tls.conf"])
def test_every_server_has_its_log_and_says_why_it_refuses(name: str) -> None:
    """What stands outside of the servers relies on both."""
    texts = {"default.conf": DEFAULT_CONF.read_text(), "many servers": many_servers(DEFAULT_CONF.read_text())}
    text = texts.get(name) or (NGINX / name).read_text()
    servers = re.findall(r"^server \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert servers
    for block in servers:
        assert "    access_log /dev/stdout slipway;\n" in block
        assert "    location = /@problem {\n" in block
    assert not re.search(r"^access_log", text, re.MULTILINE)


def memory_of(process: int) -> int:
    """The bytes that a process has in memory."""
    (kibibytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kibibytes) * 1024


def kept_in_files(process: int, folder: Path) -> list[int]:
    """The sizes in bytes of the files of this folder that a process has open; nginx's have no name any more."""
    sizes = []
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # It may have been closed by now.
            if file.readlink().is_relative_to(folder):
                sizes.append(file.stat().st_size)
    return sizes


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_slow_uploads_fill_no_memory(nginx: Nginx) -> None:
    """Each has sent all but the end of the largest body."""
    master = nginx.process.pid
    (worker,) = map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())
    before = memory_of(worker)
    size = 2**20
    head = f"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
    with ExitStack() as stack:
        lines = [stack.enter_context(connected(nginx)) for _ in range(40)]
        for line in lines:
            line.sendall(head + b"x" * (size - 1))
        deadline = time.monotonic() + START_SECONDS
        while sum(kept >= size / 2 for kept in kept_in_files(worker, nginx.folder / "body")) < len(lines):
            assert time.monotonic() < deadline, "it keeps them in memory"
            time.sleep(0.02)
        held = memory_of(worker) - before
        for line in lines:
            line.sendall(b"x")
            assert line.recv(12) == b"HTTP/1.1 200"
    assert held < len(lines) * size / 4


# What ingress-nginx writes of its own, and with what it is told.
CONTROLLER = """
map $http_x_request_id $req_id {{
    default $http_x_request_id;
    "" $request_id;
}}
{snippet}
server {{
    listen 80;
    access_log /dev/stdout;
    location / {{
        proxy_pass http://servers;
        proxy_set_header X-Request-ID $req_id;
    }}
}}
upstream servers {{
    server web:8000;
}}
"""


def test_what_ingress_nginx_is_told_has_it_choose_the_id(server: str) -> None:
    (snippet,) = re.findall(r"^#\s+http-snippet: (.+)$", (KUBERNETES / "ingress.yaml").read_text(), re.MULTILINE)
    received = {}
    for told in ("", snippet):
        with nginx_with(CONTROLLER.format(snippet=told), {"web:8000": server}) as nginx:
            answer = httpx2.get(nginx.url, headers={"X-Request-ID": "chosen-by-the-client"}).json()
            received[told] = [value for name, value in answer["headers"] if name == "x-request-id"]
    assert received[""] == ["chosen-by-the-client"]
    (chosen,) = received[snippet]
    assert re.fullmatch("[0-9a-f]{32}", chosen)
