"""Embedded services that several processes share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scripts.embedded import ServiceError, free_port, is_port_free, scratch_folder
from scripts.services import Config, _state, attach

from .pids import is_alive, wait_until

ROOT = Path(__file__).parents[2]
# Attaches, says so, and stays until its standard input ends; as often as told to.
USER = """
import json, sys
from src.scripts.services import Config, ServiceError, attach
config = Config(**json.loads(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    try:
        with attach(config) as services:
            print("up", services.problem(), flush=True)
            if sys.argv[2] == "1":
                sys.stdin.read()
    except ServiceError as error:
        print(error, flush=True)
"""
User = subprocess.Popen[str]


@pytest.fixture
def config(cluster: Path) -> Iterator[Config]:
    """Services of this test alone, that have run before; at its end nothing of them may run."""
    with scratch_folder() as folder:
        shutil.copytree(cluster, folder / ".data" / "postgres")
        config = Config(str(folder / ".data"), free_port(), "ada", "one", "things", free_port())
        yield config
        wait_until(lambda: is_down(config))


def is_down(config: Config) -> bool:
    return is_port_free(config.postgres_port) and is_port_free(config.valkey_port)


def is_up(config: Config) -> bool:
    return not is_port_free(config.postgres_port) and not is_port_free(config.valkey_port)


Join = Callable[..., User]


@pytest.fixture
def join(config: Config) -> Iterator[Join]:
    """Starts a process that uses the services."""
    started: list[User] = []

    def join(times: int = 1, config: Config = config) -> User:
        command = [sys.executable, "-c", USER, json.dumps(asdict(config)), str(times)]
        user = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(user)
        return user

    yield join
    for user in started:
        user.kill()
        user.communicate()


def says(user: User) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def leave(user: User) -> None:
    """End politely."""
    user.communicate(timeout=30)
    assert user.returncode == 0


def guardian_of(config: Config) -> int:
    return int(_state(config)["pid"])


def test_two_users_share_one_pair_and_the_last_one_stops_it(config: Config, join: Join) -> None:
    first, second = join(), join()
    assert says(first) == says(second) == "up None"
    guardian = guardian_of(config)
    leave(first)
    assert is_up(config)
    assert is_alive(guardian)
    leave(second)
    assert is_down(config)
    wait_until(lambda: not is_alive(guardian))


def test_nothing_stays_after_a_user_that_is_killed(config: Config, join: Join) -> None:
    user = join()
    assert says(user) == "up None"
    guardian = guardian_of(config)
    user.kill()
    wait_until(lambda: is_down(config) and not is_alive(guardian))


def test_a_killed_guardian_is_noticed_and_the_next_user_gets_a_new_one(config: Config, join: Join) -> None:
    with attach(config) as services:
        os.kill(guardian_of(config), signal.SIGKILL)
        wait_until(lambda: services.problem() is not None)
        assert "was killed" in str(services.problem())
        next_user = join()
        assert says(next_user) == "up None"
        assert services.problem() is None
        leave(next_user)
    assert is_down(config)


def test_a_killed_server_is_noticed(config: Config) -> None:
    with attach(config) as services:
        pid = int(config.path("postgres.lock").read_text())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: services.problem() is not None)
        assert services.problem() == f"PostgreSQL has ended unexpectedly: see {config.log}."
    assert is_down(config)


def test_a_guardian_that_is_told_to_stop_stops_its_servers(config: Config) -> None:
    with attach(config) as services:
        os.kill(guardian_of(config), signal.SIGTERM)
        wait_until(lambda: services.problem() is not None)
        assert is_down(config)


def test_a_user_that_comes_while_they_stop_gets_running_ones(config: Config, join: Join) -> None:
    users = [join(times=6) for _ in range(4)]
    for user in users:
        output, _ = user.communicate(timeout=120)
        assert output.splitlines() == ["up None"] * 6
    wait_until(lambda: is_down(config))


def test_what_went_wrong_is_one_line_for_every_user(config: Config, join: Join) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", config.postgres_port))
        busy.listen()
        first, second = join(), join()
        for user in (first, second):
            assert says(user).startswith(f"Port {config.postgres_port} is in use by another program: set POSTGRES_PORT")
    with attach(config):
        assert is_up(config)


def test_other_settings_are_refused_while_they_run(config: Config) -> None:
    with attach(config):
        other = attach(replace(config, postgres_password="two"))
        with pytest.raises(ServiceError, match="already run here with other settings"), other:
            pass
        assert is_up(config)
    with attach(replace(config, postgres_password="two")):
        assert is_up(config)


def test_the_state_is_readable_by_its_owner_only(config: Config) -> None:
    with attach(config):
        assert config.path("guardian.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", '{"reason": "no en', "[]"])
def test_a_state_that_was_half_written_when_the_power_failed_is_no_obstacle(config: Config, text: str) -> None:
    config.path("guardian.json").write_text(text)
    with attach(config) as services:
        assert services.problem() is None


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / ".data"
    file.touch()
    refused = attach(Config(str(file), free_port(), "ada", "one", "things", free_port()))
    with pytest.raises(ServiceError, match=r"^.*/\.data must be a folder: move the file away\.$"), refused:
        pass


def test_a_log_that_cannot_be_written_is_one_line(config: Config) -> None:
    config.log.mkdir()  # Like a file of somebody else's, for root too.
    with pytest.raises(ServiceError, match=r"^.*/services\.log can't be used: Is a directory\.$"), attach(config):
        pass
