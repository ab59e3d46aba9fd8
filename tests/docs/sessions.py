"""Sessions in bash that ask a running API, as somebody with a terminal does."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from redis import Redis

from scripts import create_first_superuser, create_first_tier
from tests.docs.blocks import Block
from tests.processes import BIN, process, running_api, wait_for_worker

SHOWN = "http://127.0.0.1:8000"  # where `make run` serves
PASSWORD = "'the password that make run printed'"
# An answer that is an error ends the session. The rest is what earlier blocks have set.
PRELUDE = r"""
curl() { command curl --fail-with-body "$@"; }
"""
SIGNED_IN = r"""
API=http://127.0.0.1:8000/api/v1
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
JSON='Content-Type: application/json'
TOKEN=$(curl -s $API/login -d username=admin --data-urlencode "password=$ADMIN_PASSWORD" | field access_token)
ADMIN="Authorization: Bearer $TOKEN"
curl -s $API/tier -H "$ADMIN" -H "$JSON" -d '{"name": "pro"}' > /dev/null
"""
# A worker takes five seconds for it, and waits for it when it is told to stop: for those who speak of it.
ENQUEUED = r"""
TASK=$(curl -s -X POST "$API/tasks/task?message=hello" | field id)
"""


@dataclass(frozen=True)
class Api:
    """A running API with a worker, the first superuser and the first tier."""

    url: str

    def run(self, block: Block) -> str:
        """Runs a session and returns what it printed. Raises: AssertionError when a command of it fails.

        With `empty` in the block's comment nothing is there but the superuser: the session begins at the beginning.
        """
        self._clear()
        before = "" if "empty" in block.comment else SIGNED_IN + (ENQUEUED if "$TASK" in block.text else "")
        script = PRELUDE + before + block.text
        script = script.replace(SHOWN, self.url).replace(PASSWORD, '"$ADMIN_PASSWORD"')
        with TemporaryDirectory() as folder:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=folder,
                env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, request: str) -> httpx2.Response:
        """Asks as the superuser: `METHOD /path`, and perhaps a body in JSON. There is a tier called pro."""
        self._clear()
        method, path, *body = request.split(maxsplit=2)
        with self._client() as client:
            client.post("tier", json={"name": "pro"}).raise_for_status()
            return client.request(method, path.lstrip("/"), json=json.loads(body[0]) if body else None)

    @contextmanager
    def _client(self) -> Iterator[httpx2.Client]:
        with httpx2.Client(base_url=f"{self.url}/api/v1/") as client:
            login = {"username": "admin", "password": os.environ["ADMIN_PASSWORD"]}
            client.headers["Authorization"] = f"Bearer {client.post('login', data=login).json()['access_token']}"
            yield client

    def _clear(self) -> None:
        with self._client() as client:
            for path in ("db_user/ada", "tier/pro"):
                assert client.delete(path).status_code in {200, 404}, path


@contextmanager
def running(valkey_port: int, folder: Path) -> Iterator[Api]:
    """The API and a worker on the database that the environment names, once both are there.

    Args:
        valkey_port: of the Valkey that they use; what it holds goes.
        folder: the project's, or a copy of it.
    """
    with Redis(host="127.0.0.1", port=valkey_port) as redis:
        redis.flushall()
    create_first_superuser.run()
    create_first_tier.run()
    worker_command = ("arq", "src.app.core.worker.settings.WorkerSettings")
    with process(*worker_command, cwd=folder) as worker, running_api(cwd=folder) as url:
        wait_for_worker(worker, valkey_port)
        yield Api(url)
