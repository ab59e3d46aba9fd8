"""A real nginx before a server or several: as a careless operator would have it, or with this repository's files."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.embedded import free_port
from scripts.unprivileged import scratch_folder
from tests.canaries import refuse_secrets
from tests.processes import START_SECONDS, wait_for_answer

# Debian's is in a folder that is not on everybody's PATH.
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))

# A 200 that says nothing else is kept for a minute. Nothing is said about Vary, credentials or cookies.
CACHING = """
      proxy_cache answers;
      proxy_cache_valid 200 1m;
      add_header X-Proxy-Cache $upstream_cache_status always;
"""
# What the client has sent is passed on, with its address at the right.
FORWARDING = """
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
"""
# What http {} has in the image's own nginx.conf, before it includes the files of conf.d.
IMAGE = """
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  log_format main '$remote_addr - $remote_user [$time_local] "$request" '
                  '$status $body_bytes_sent "$http_referer" '
                  '"$http_user_agent" "$http_x_forwarded_for"';
  access_log /var/log/nginx/access.log main;
  sendfile on;
  keepalive_timeout 65;
"""
# And in Debian's.
DEBIAN = """
  sendfile on;
  tcp_nopush on;
  types_hash_max_size 2048;
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
  ssl_prefer_server_ciphers on;
  access_log /var/log/nginx/access.log;
  gzip on;
"""
MAIN = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  {http}
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {conf_d}
}}
"""
CONFIG = """
  proxy_cache_path {folder}/cache keys_zone=answers:1m;
  upstream servers {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    access_log off;
    location / {{
      proxy_pass http://servers;
      {location}
    }}
  }}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx.

    Attributes:
        url: where it listens, `http://host:port`.
        tls_url: where it listens with TLS, if its file says so.
        folder: holds `access.log`, `error.log`, and `main.log`: what the main file would have logged.
        process: its master.
    """

    url: str
    tls_url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def log(self) -> list[dict[str, Any]]:
        """The access log's lines, one per request that is over. Raises: ValueError for a line that is no JSON."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's line of a request, which may be written a moment after its answer has arrived."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for line in self.log():
                if line["request_id"] == request_id:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"nothing is logged about {request_id}")


@contextmanager
def nginx_before(*servers: str, location: str = CACHING) -> Iterator[str]:
    """nginx in front of servers, who take turns. Yields its address. Skips the test where nginx is not installed.

    Args:
        servers: their addresses, `http://host:port`.
        location: what it does with a request, in its own words.
    """
    with scratch_folder() as folder:
        port = free_port()
        turns = " ".join(f"server {url.removeprefix('http://')};" for url in servers)
        conf = CONFIG.format(folder=folder, port=port, servers=turns, location=location.strip())
        with _running(folder, conf) as server:
            url = f"http://127.0.0.1:{port}"
            wait_for_answer(f"{url}/api/v1/health", server)
            yield url


@contextmanager
def nginx_with(conf: str, servers: Mapping[str, str], *, certificates: Path | None = None) -> Iterator[Nginx]:
    """nginx with a file of conf.d, once it listens and, without TLS, answers. Skips where nginx is not installed.

    Only addresses and paths in the file are replaced: what it listens on, and where its log goes.

    Args:
        conf: the file's text, such as `default.conf`'s.
        servers: the address, `http://host:port`, of each server that it names: `{"web:8000": "http://127.0.0.1:7"}`.
        certificates: the folder that it calls `/etc/nginx/certificates`.
    """
    with scratch_folder() as folder:
        port, tls_port = free_port(), free_port()
        here = _localized(conf, servers, folder, certificates or folder, port=port, tls_port=tls_port)
        with _running(folder, here) as server:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_listens(folder, server)
            if "listen 443" not in conf:
                wait_for_answer(f"{url}/api/v1/health", server)
            yield Nginx(url, f"https://127.0.0.1:{tls_port}", folder, server)


def complaints(conf: str, servers: Mapping[str, str], certificates: Path, http: str = IMAGE) -> str:
    """What `nginx -t` says against a file of conf.d, included by the image's or another main file; nothing when it is
    well.
    """
    with scratch_folder() as folder:
        here = _localized(conf, servers, folder, certificates, port=free_port(), tls_port=free_port())
        command = [*_command(_written(folder, here, http)), "-t", "-q"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()


def _localized(
    conf: str, servers: Mapping[str, str], folder: Path, certificates: Path, *, port: int, tls_port: int
) -> str:
    for name, url in servers.items():
        assert f"server {name}" in conf, f"it names no server {name}"
        conf = conf.replace(f"server {name}", f"server {url.removeprefix('http://')}")
    conf = re.sub(r"listen 80\b", f"listen 127.0.0.1:{port}", conf)
    conf = re.sub(r"listen 443\b", f"listen 127.0.0.1:{tls_port}", conf)
    conf = conf.replace("/dev/stdout", str(folder / "access.log"))
    conf = conf.replace("/etc/nginx/certificates", str(certificates))
    if _version() < (1, 25, 1):  # It has no directive of that name yet, and says the same in `listen`.
        conf = re.sub(r"(listen [\d.:]+ ssl);\n\s*http2 on;", r"\1 http2;", conf)
    return conf


def _version() -> tuple[int, ...]:
    said = subprocess.run([_binary(), "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(map(int, said.partition("nginx/")[2].split()[0].split(".")))


def _binary() -> str:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    return NGINX


def _written(folder: Path, conf: str, http: str = IMAGE) -> Path:
    config = folder / "nginx.conf"
    # Root's nginx would serve as another user, to whom the folder is closed.
    user = "user root;" if os.geteuid() == 0 else ""
    http = http.replace("/var/log/nginx/access.log", str(folder / "main.log"))
    config.write_text(MAIN.format(user=user, folder=folder, http=http.strip(), conf_d=conf))
    return config


def _command(config: Path) -> list[str]:
    return [_binary(), "-e", str(config.with_name("error.log")), "-c", str(config)]


@contextmanager
def _running(folder: Path, conf: str) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(_command(_written(folder, conf)))
    try:
        yield server
    finally:
        server.terminate()
        server.wait(15)
    for log in folder.glob("*.log"):
        refuse_secrets(log.read_text(errors="replace"), f"nginx's {log.name}")


def _wait_until_it_listens(folder: Path, server: subprocess.Popen[bytes]) -> None:
    """It writes its pid once it does."""
    deadline = time.monotonic() + START_SECONDS
    while not (folder / "nginx.pid").exists():
        assert server.poll() is None, (folder / "error.log").read_text()
        assert time.monotonic() < deadline, "nginx did not begin"
        time.sleep(0.01)
