"""A real nginx before a server or several. It caches, as a careless operator would have it do, or says who asks."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.embedded import free_port
from scripts.unprivileged import scratch_folder
from tests.processes import wait_for_answer

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
CONFIG = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=answers:1m;
  upstream servers {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://servers;
      {location}
    }}
  }}
}}
"""


@contextmanager
def nginx_before(*servers: str, location: str = CACHING) -> Iterator[str]:
    """nginx in front of servers, who take turns. Yields its address. Skips the test where nginx is not installed.

    Args:
        servers: their addresses, `http://host:port`.
        location: what it does with a request, in its own words.
    """
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with scratch_folder() as folder:
        port = free_port()
        config = folder / "nginx.conf"
        # Root's nginx would serve as another user, to whom the folder is closed.
        user = "user root;" if os.geteuid() == 0 else ""
        turns = " ".join(f"server {url.removeprefix('http://')};" for url in servers)
        config.write_text(CONFIG.format(user=user, folder=folder, port=port, servers=turns, location=location.strip()))
        with _running(NGINX, config) as server:
            url = f"http://127.0.0.1:{port}"
            wait_for_answer(f"{url}/api/v1/health", server)
            yield url


@contextmanager
def _running(binary: str, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen([binary, "-e", str(config.with_name("error.log")), "-c", str(config)])
    try:
        yield server
    finally:
        server.terminate()
        server.wait(15)
