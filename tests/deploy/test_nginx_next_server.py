"""`default.conf`'s form for many servers: what goes to the next server when one fails, and what never does."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx2
import pytest

from scripts.embedded import free_port
from tests.deploy.files import DEFAULT_CONF, many_servers
from tests.nginx import Nginx, nginx_with

HEALTH = "/api/v1/health"
ASKED = "/api/v1/tiers"


class Fragile(socketserver.StreamRequestHandler):
    """Reads whole requests. The first one for ASKED, on whichever server, gets no answer."""

    def handle(self) -> None:
        servers = cast("FragileServer", self.server)
        method, path, _ = self.rfile.readline().decode().split()
        size = 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        body = self.rfile.read(size)
        if path == ASKED:
            servers.seen.append((servers.server_address[1], method, body))
            if len(servers.seen) == 1:
                return
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class FragileServer(socketserver.ThreadingTCPServer):
    """Writes down what it is asked, together with others.

    Attributes:
        seen: port, method and body of each request for ASKED.
    """

    daemon_threads = True

    def __init__(self, seen: list[tuple[int, str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Fragile)
        self.seen = seen


@contextmanager
def served(seen: list[tuple[int, str, bytes]]) -> Iterator[str]:
    """The address of a server."""
    with FragileServer(seen) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@contextmanager
def before_two(seen: list[tuple[int, str, bytes]], conf: str) -> Iterator[Nginx]:
    """nginx before two servers of which the first one to be asked fails."""
    with served(seen) as first, served(seen) as second:
        servers = {"fastapi1:8000": first, "fastapi2:8000": second}
        with nginx_with(conf, servers) as nginx:
            yield nginx


def conf() -> str:
    return many_servers(DEFAULT_CONF.read_text())


def asked(nginx: Nginx, method: str) -> httpx2.Response:
    body: dict[str, Any] = {"content": b'{"name": "pro"}'} if method in {"POST", "PATCH", "PUT"} else {}
    return httpx2.request(method, f"{nginx.url}{ASKED}", timeout=20, **body)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_have_been_done_is_not_done_again(method: str) -> None:
    """The server had all of it, and nobody knows what it did with it."""
    seen: list[tuple[int, str, bytes]] = []
    with before_two(seen, conf()) as nginx:
        answer = asked(nginx, method)
    assert answer.status_code == 502
    assert [(how, body) for _, how, body in seen] == [(method, b'{"name": "pro"}')]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_what_changes_nothing_the_second_time_is_sent_to_the_other_server(method: str) -> None:
    seen: list[tuple[int, str, bytes]] = []
    with before_two(seen, conf()) as nginx:
        answer = asked(nginx, method)
    assert answer.status_code == 200
    assert [how for _, how, _ in seen] == [method] * 2
    assert seen[0][0] != seen[1][0]


def test_one_word_would_have_it_done_twice() -> None:
    """So that the tests above are about that word's absence."""
    allowed = conf().replace("proxy_next_upstream error timeout;", "proxy_next_upstream error timeout non_idempotent;")
    seen: list[tuple[int, str, bytes]] = []
    with before_two(seen, allowed) as nginx:
        assert asked(nginx, "POST").status_code == 200
    assert len(seen) == 2


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_could_not_be_sent_is_sent_to_the_other_server(method: str) -> None:
    seen: list[tuple[int, str, bytes]] = [(0, "", b"")]  # Nobody fails any more.
    with served(seen) as there:
        servers = {"fastapi1:8000": f"http://127.0.0.1:{free_port()}", "fastapi2:8000": there}
        with nginx_with(conf(), servers) as nginx:
            assert [asked(nginx, method).status_code for _ in range(4)] == [200] * 4
    assert len(seen) == 5
