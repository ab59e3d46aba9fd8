"""A real replica, and a real PgBouncer, as child processes on free ports."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.embedded import Postgres, free_port, scratch_folder
from scripts.server import HOST
from scripts.unprivileged import data_folder, identity

# Debian's is in a folder that is not on everybody's PATH.
PGBOUNCER = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
PATIENCE = 15.0  # seconds


class Standby(Postgres):
    """A hot standby: it has what its primary has, roles included."""

    def _finish(self) -> None:
        """Nothing can be created here."""

    def ask(self, statement: str) -> None:
        """Has the cluster's superuser run this."""
        psql = ["psql", "-X", "-q", "-h", str(self._socket_folder), "-p", str(self.port), "-U", "embedded_owner"]
        self._run([*psql, "-d", "postgres", "-c", statement])

    def pause(self) -> None:
        """It lags from now on."""
        self.ask("SELECT pg_wal_replay_pause()")

    def resume(self) -> None:
        """It catches up."""
        self.ask("SELECT pg_wal_replay_resume()")


@contextmanager
def standby_of(primary: Postgres) -> Iterator[Standby]:
    """A replica that follows the primary, as it is now and from now on."""
    with scratch_folder() as folder:
        data = data_folder(folder / "standby")
        socket = str(primary._socket_folder)
        copy = ["pg_basebackup", "-D", str(data), "-X", "stream", "-R", "-c", "fast", "--no-sync"]
        primary._run([*copy, "-h", socket, "-p", str(primary.port), "-U", "embedded_owner"])
        user, password = os.environ["POSTGRES_USER"], os.environ["POSTGRES_PASSWORD"]
        with Standby(data, port=free_port(), user=user, password=password, database="", durable=False) as standby:
            yield standby


BOUNCER = """
[databases]
* = host={host} port={server_port} user={user} password={password}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""


@contextmanager
def pgbouncer_before(server_port: int) -> Iterator[int]:
    """PgBouncer in transaction mode, with four connections to the server for everybody. Yields its port."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    with scratch_folder() as folder:
        port = free_port()
        config = data_folder(folder / "pgbouncer") / "pgbouncer.ini"
        user, password = os.environ["POSTGRES_USER"], os.environ["POSTGRES_PASSWORD"].replace("'", "''")
        config.write_text(
            BOUNCER.format(
                host=HOST, server_port=server_port, port=port, folder=config.parent, user=user, password=f"'{password}'"
            )
        )
        config.chmod(0o644)
        process = subprocess.Popen([PGBOUNCER, "-q", str(config)], cwd="/", **identity())
        try:
            _wait_until_it_listens(config.parent / "pgbouncer.pid", process)
            yield port
        finally:
            process.kill()
            process.wait()


def _wait_until_it_listens(pid_file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not pid_file.exists():
        assert process.poll() is None, "pgbouncer has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)
