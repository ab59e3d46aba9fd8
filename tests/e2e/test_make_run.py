"""`make run` as a whole: every process of it, in a copy of this project."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from scripts.children import STEADY_SECONDS
from scripts.embedded import free_port, is_port_free, scratch_folder

from ..scripts.pids import commands, is_alive, wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
NAME = re.compile(r"(?m)^(\w+)=.*$")


class Run:
    """One `make run` in a copy of the project."""

    def __init__(self, project: Path, port: int, *words: str, shell: Mapping[str, str] | None = None) -> None:
        """Start it; its log goes to a file of its own. With variables of a `shell` it is make that is started there."""
        self.url = f"http://127.0.0.1:{port}"
        self._log = project / f"run-{time.monotonic_ns()}.log"
        words = words or ("run", "--port", str(port))
        command = [str(project / ".venv" / "bin" / "python"), "-m", "src.scripts.dev", *words]
        if shell is not None:  # What is installed is that of the test run: `make install` has tests of its own.
            command = ["make", "--no-print-directory", "PYTHON=true", f"PORT={port}", *words[:1]]
        environment = {**clean_environment(project), **(shell or {})}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=project,
                env={name: value for name, value in environment.items() if value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All it has printed until now."""
        return self._log.read_text(errors="replace")

    def has_printed(self, line: str) -> bool:
        """Whether the output has this line in it."""
        return line in self.output

    def wait_for_answer(self) -> None:
        """Return once the API answers, with every part started."""
        wait_until(lambda: self.process.poll() is not None or self._answers(), START_SECONDS)
        assert self.process.poll() is None, self.output
        wait_until(lambda: "worker started" in self.output and "Ctrl-C" in self.output)

    def _answers(self) -> bool:
        return self.asked("/api/v1/health").get("status") == "ok"

    def asked(self, path: str) -> dict[str, Any]:
        """What the API answers, or nothing while it does not."""
        try:
            answer = httpx2.get(f"{self.url}{path}")
        except httpx2.TransportError:
            return {}
        return cast(dict[str, Any], answer.json())

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        os.killpg(self.process.pid, number)  # As a terminal does: make tells nobody.
        return self.process.wait(30)


def clean_environment(project: Path) -> dict[str, str]:
    """This process's environment without any setting of the app, and without what coverage measures by."""
    settings = {*NAME.findall((ROOT / "src" / ".env.example").read_text()), "ENV_FILE"}
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    return {name: value for name, value in kept.items() if not name.startswith(("COV_", "COVERAGE_", "PYTEST_"))}


@pytest.fixture
def project(cluster: Path) -> Iterator[Path]:
    """A copy of this project with free ports, used before; nothing may be left running in it at the end."""
    with scratch_folder() as folder:
        folder.chmod(0o755)
        copy = folder / "project"
        ignored = shutil.ignore_patterns(".env", "logs")
        shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
        for file in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / file, copy)
        shutil.copytree(cluster, copy / ".data" / "postgres")
        (copy / ".venv").symlink_to(Path(sys.prefix))
        example = copy / "src" / ".env.example"
        text = example.read_text().replace("25432", str(free_port())).replace("25379", str(free_port()))
        example.write_text(text)
        yield copy
        wait_until(lambda: not processes_in(copy))


def write_env_file(project: Path, *lines: str) -> None:
    """The shipped example with a key, and these lines, which win over its own."""
    text = (project / "src" / ".env.example").read_text()
    text = re.sub("(?m)^SECRET_KEY=$", f"SECRET_KEY={'0123456789abcdef' * 4}", text)
    (project / "src" / ".env").write_text("\n".join([text, *lines, ""]))


def processes_in(project: Path) -> list[int]:
    """Every process whose working directory or command line leads into the project."""
    found = [
        pid
        for pid, command in commands().items()
        if str(project) in command or working_directory(pid).startswith(str(project))
    ]
    return [pid for pid in found if is_alive(pid)]


def process_of(project: Path, name: str) -> int:
    """The process of the project whose command has this name in it."""
    found = [pid for pid in processes_in(project) if name in commands().get(pid, "")]
    assert len(found) == 1, [commands().get(pid) for pid in processes_in(project)]
    return found[0]


def working_directory(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:  # It has ended, or this system has no /proc and the command line has to do.
        return ""


Start = Callable[..., Run]


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Starts `make run` on a free port, or the one given."""
    started: list[Run] = []

    def start(*words: str, port: int | None = None, shell: Mapping[str, str] | None = None) -> Run:
        started.append(Run(project, port or free_port(), *words, shell=shell))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(30)


ADA = {"name": "Ada", "username": "ada", "email": "ada@example.com", "password": "correct horse battery"}


def test_a_project_lives_through_stops_kills_and_starts(project: Path, start: Start) -> None:
    """One story instead of one test each: every start costs seconds of two cores."""
    shutil.rmtree(project / ".data")  # as in a fresh clone
    first = start()
    first.wait_for_answer()
    wait_until(lambda: "password " in first.output)
    printed = re.findall(r"password +(\S+)\n", first.output)[0]
    login = httpx2.post(f"{first.url}/api/v1/login", data={"username": "admin", "password": printed})
    assert login.status_code == 200
    assert httpx2.post(f"{first.url}/api/v1/user", json=ADA).status_code == 201
    env_file = (project / "src" / ".env").read_text()

    # A second one is refused and disturbs nothing.
    second = start()
    assert second.process.wait(30) == 1
    assert re.fullmatch(r"`make run` is already running here \(pid \d+\): stop it first.*\n", second.output)
    assert httpx2.get(f"{first.url}/api/v1/user/ada").status_code == 200

    # Ctrl-C stops everything; the data and the settings are there at the next start.
    assert first.stop(signal.SIGINT) == 0
    assert "Traceback" not in first.output
    assert not processes_in(project)
    again = start()
    again.wait_for_answer()
    assert httpx2.get(f"{again.url}/api/v1/user/ada").status_code == 200
    assert (project / "src" / ".env").read_text() == env_file
    assert printed not in again.output

    # After kill -9 the next start, at once, waits until the port is free and finds the data.
    again.process.kill()
    again.process.wait()
    third = start(port=httpx2.URL(again.url).port)
    third.wait_for_answer()
    assert httpx2.get(f"{third.url}/api/v1/user/ada").status_code == 200

    # Without the process that would clean up after a kill -9, it does not go on.
    os.kill(process_of(project, "reaper.py"), signal.SIGKILL)
    assert third.process.wait(30) == 1
    assert third.output.endswith(
        "The process that stops the others after a kill -9 was itself killed: start again.\n"
    ), third.output
    assert not processes_in(project)


def test_another_prefix_of_the_api(project: Path, start: Start) -> None:
    api = project / "src" / "app" / "api" / "__init__.py"
    api.write_text(api.read_text().replace('PREFIX = "/api/v1"', 'PREFIX = "/v2"'))
    run = start()
    wait_until(lambda: "Ctrl-C stops everything." in run.output, START_SECONDS)
    assert run.asked("/v2/health") == {"status": "ok"}
    password = re.findall(r"(?m)^ADMIN_PASSWORD=[\"']?([^\"'\n]+)", (project / "src" / ".env").read_text())[0]
    with httpx2.Client(base_url=run.url) as browser:
        login = browser.post("/v2/login", data={"username": "admin", "password": password})
        assert login.status_code == 200
        assert browser.post("/v2/refresh").status_code == 200
    assert '"/v2/login"' in httpx2.get(f"{run.url}/openapi.json").text
    assert run.stop(signal.SIGINT) == 0


def test_what_ends_by_itself_and_what_has_changed_starts_again(project: Path, start: Start) -> None:
    run = start()
    run.wait_for_answer()
    up_since = time.monotonic()
    wait_until(lambda: time.monotonic() > up_since + STEADY_SECONDS)
    for command in (".WorkerSettings", ".LongWorkerSettings", " uvicorn "):
        os.kill(process_of(project, command), signal.SIGKILL)
    for name in ("worker", "long", "api"):
        line = f"The {name} process has ended by itself by signal 9. It starts again now.\n"
        wait_until(partial(run.has_printed, line))
    run.wait_for_answer()
    assert has_task_done(run)

    source = project / "src" / "app" / "main.py"
    right = source.read_text()
    source.write_text(f"{right}app.description = 'changed'\n")
    wait_until(lambda: run.asked("/openapi.json").get("info", {}).get("description") == "changed", START_SECONDS)
    assert "Changed src/app/main.py: restarting.\n" in run.output

    source.write_text(f"{right}(")
    wait_until(lambda: "The api process has ended by itself with code 1." in run.output, START_SECONDS)
    source.write_text(right)
    run.wait_for_answer()

    # The services do not start again: who else uses them, and what was lost, is not for a run to know.
    os.kill(process_of(project, "src.scripts.services"), signal.SIGKILL)
    assert run.process.wait(30) == 1
    assert "The process that guards PostgreSQL and Valkey was killed: start again.\n" in run.output
    assert not processes_in(project)


def test_no_variable_of_the_shell_stops_it(project: Path, start: Start) -> None:
    """All of them in one start."""
    other = project / "other place"
    (other / "src").mkdir(parents=True)
    (other / "app.py").write_text("raise SystemExit('the wrong app')")
    (other / "asyncpg.py").write_text("raise SystemExit('the wrong asyncpg')")
    python = {"SAFEPATH": "1", "PATH": str(other), "HOME": str(other), "OPTIMIZE": "2", "WARNINGS": "error"}
    postgres = dict.fromkeys(("HOST", "PORT", "USER", "PASSWORD", "DATABASE", "SERVICE", "OPTIONS", "TZ"), "nonsense")
    postgres |= {"SSLMODE": "verify-full", "SSLNEGOTIATION": "direct", "SSLROOTCERT": "/none", "SSLCERT": "/none"}
    uvicorn = {"UVICORN_WORKERS": "3", "UVICORN_UDS": "/none", "UVICORN_HOST": "192.0.2.1", "UVICORN_RELOAD": "true"}
    shell = {
        **{f"PYTHON{name}": value for name, value in python.items()},
        **{f"PG{name}": value for name, value in postgres.items()},
        **uvicorn,
        "WEB_CONCURRENCY": "3",
        "GUNICORN_CMD_ARGS": "--bind=192.0.2.1",
        "FORWARDED_ALLOW_IPS": "*",
        "VIRTUAL_ENV": str(other),
        "CDPATH": str(other),
        "REDIS_URL": "redis://192.0.2.1",
        "DATABASE_URL": "none",
        **dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), "http://192.0.2.1:1"),
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
        "TMPDIR": str(other / "none"),
        "HOME": "",
        "PIP_USER": "1",
    }
    umask = os.umask(0o077)
    try:
        run = start(shell=shell)
    finally:
        os.umask(umask)
    run.wait_for_answer()
    assert has_task_done(run)
    assert "Traceback" not in run.output
    assert "wrong" not in run.output
    assert sum(" uvicorn " in commands().get(pid, "") for pid in processes_in(project)) == 1
    assert run.stop(signal.SIGINT) in {0, 2, 130, -signal.SIGINT}  # make ends by the signal as well


def test_a_user_with_more_fields_is_asked_for_by_the_settings(project: Path, start: Start) -> None:
    """A field that sign-up requires is none of the first superuser's; a column that the table requires is."""
    source = project / "src" / "app" / "models" / "user.py"
    right = source.read_text()
    field = "    password: Password\n\n\nclass UserUpdate"
    assert field in right
    column = "    username: str = Field(max_length=20, unique=True)\n"
    source.write_text(right.replace(column, f"{column}    phone: str\n"))
    run = start()
    assert run.process.wait(START_SECONDS) == 1
    assert run.output.endswith("ADMIN_PHONE must be set: User.phone is required.\n")

    source.write_text(right.replace(field, field.replace("\n\n\n", "\n    invitation: str\n\n\n", 1)))
    run = start()
    run.wait_for_answer()
    assert "Superuser admin created.\n" in run.output
    assert run.stop(signal.SIGINT) == 0


def has_task_done(run: Run) -> bool:
    """Whether a worker carries out what the API enqueues now."""
    created = httpx2.post(f"{run.url}/api/v1/tasks/task", params={"message": "hello"})
    address = f"/api/v1/tasks/task/{created.json()['id']}"
    wait_until(lambda: run.asked(address).get("status") == "complete", START_SECONDS)
    return run.asked(address)["success"] is True


def test_of_two_at_once_one_is_refused(project: Path, start: Start) -> None:
    both = [start(), start()]
    wait_until(lambda: any(run.process.poll() is not None for run in both))
    refused, running = sorted(both, key=lambda run: run.process.poll() is None)
    assert refused.process.returncode == 1
    assert "`make run` is already running here" in refused.output
    assert running.process.poll() is None
    # kill -9 in the middle of the start leaves nothing behind either: the fixture looks.
    running.process.kill()
    running.process.wait()


def test_services_alone_are_shared_and_outlive_the_run(project: Path, start: Start) -> None:
    services = start("services")
    wait_until(lambda: "Ctrl-C stops them." in services.output, START_SECONDS)
    run = start()
    run.wait_for_answer()
    assert run.stop(signal.SIGINT) == 0
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", services.output)]
    assert len(ports) == 2
    assert not any(map(is_port_free, ports))
    assert services.stop(signal.SIGINT) == 0
    assert all(map(is_port_free, ports))


def test_a_busy_port_is_one_line_and_starts_nothing(project: Path, start: Start) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        run = start(port=port)
        assert run.process.wait(30) == 1
    assert run.output == f"Port {port} is in use by another program: `make run PORT={port + 1}`.\n"
    assert not (project / "src" / ".env").exists()


def test_a_port_that_cannot_be_is_one_line(project: Path, start: Start) -> None:
    run = start("run", "--port", "abc")
    assert run.process.wait(30) == 1
    assert run.output == "PORT must be a TCP port, 1 to 65535, not abc.\n"


def test_a_postgresql_that_never_answers_is_one_line(project: Path, start: Start) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        write_env_file(project, "EMBEDDED_SERVICES=false", f"POSTGRES_PORT={port}")
        run = start()
        assert run.process.wait(30) == 1
    assert run.output == "The database can't be migrated: PostgreSQL does not answer within 5 seconds.\n"


def test_a_file_that_this_user_may_not_use_is_one_line(project: Path) -> None:
    env_file, log = project / "src" / ".env", project / ".data" / "services.log"
    write_env_file(project)
    (project / ".data").chmod(0o777)
    env_file.chmod(0o000)
    assert run_as_an_ordinary_user(project) == f"{env_file} must be readable for this user: Permission denied.\n"
    env_file.chmod(0o644)
    log.touch(mode=0o000)
    assert run_as_an_ordinary_user(project) == f"{log} is closed to this user: run as its owner.\n"
    env_file.unlink()
    (project / "src").chmod(0o555)
    assert run_as_an_ordinary_user(project).startswith(f"{env_file} can't be written: Permission denied")
    (project / "src").chmod(0o755)  # For the fixture, which removes it.
    env_file.mkdir()
    assert run_as_an_ordinary_user(project) == f"{env_file} must be a file, not a folder.\n"


def run_as_an_ordinary_user(project: Path) -> str:
    """What `make run` prints when it fails at once. For root, the interpreter may be closed to anybody else."""
    python, environment = project / ".venv" / "bin" / "python", clean_environment(project)
    command = [str(python), "-c", AS_AN_ORDINARY_USER, str(free_port())]
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    return run.stdout + run.stderr


AS_AN_ORDINARY_USER = """
import os, sys
from src.scripts import dev, launch, unprivileged
user = unprivileged.identity()
if user:
    os.setgroups([])
    os.setgid(user["group"])
    os.setuid(user["user"])
    unprivileged.identity.cache_clear()
sys.argv = ["dev", "run", "--port", sys.argv[1]]
sys.exit(dev.main())
"""


def test_a_half_written_env_file_is_one_line_per_fault(project: Path, start: Start) -> None:
    (project / "src" / ".env").write_text('EMBEDDED_SERVICES=true\nSECRET_KEY="12\nPOSTGRES_PORT=many\n')
    run = start()
    assert run.process.wait(30) == 1
    assert "Traceback" not in run.output
    assert "POSTGRES_PORT must be a TCP port" in run.output
    assert all(line for line in run.output.splitlines())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('POSTGRES_SERVER="db.example.com"', 'POSTGRES_SERVER must be "127.0.0.1" while EMBEDDED_SERVICES is true.'),
        ("REDIS_QUEUE_PORT=6379", "must be one and the same while EMBEDDED_SERVICES is true."),
        ("POSTGRES_URL=postgresql://a:b@c/d", "POSTGRES_URL is set, but EMBEDDED_SERVICES is true"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(
    project: Path, start: Start, line: str, complaint: str
) -> None:
    write_env_file(project, line)
    run = start()
    assert run.process.wait(30) == 1
    assert complaint in run.output
    assert run.output.count("\n") == 1
