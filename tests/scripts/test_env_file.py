"""The first `make run` writes `src/.env`."""

import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.embedded import ServiceError, free_port, is_port_free
from scripts.env_file import _create, write_env_file

EXAMPLE = Path(__file__).parents[2] / "src" / ".env.example"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Path]:
    """The shipped example with a free port for PostgreSQL, and a busy one for Valkey."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        text = EXAMPLE.read_text().replace("25432", str(free_port())).replace("25379", str(busy.getsockname()[1]))
        (tmp_path / "example").write_text(text)
        yield tmp_path / "example"


def values(path: Path) -> dict[str, str]:
    return {name: value.strip('"') for name, value in re.findall(r"(?m)^(\w+)=(.*)$", path.read_text())}


def test_secrets_are_fresh_each_time(tmp_path: Path, example: Path) -> None:
    assert write_env_file(tmp_path / "one", example)
    assert write_env_file(tmp_path / "two", example)
    one, two = values(tmp_path / "one"), values(tmp_path / "two")
    for name in ("SECRET_KEY", "POSTGRES_PASSWORD", "ADMIN_PASSWORD"):
        assert len(one[name]) >= 19
        assert one[name] != two[name]
    assert len(one["SECRET_KEY"]) == 64


def test_only_the_owner_may_read_it_and_nothing_else_is_left(tmp_path: Path, example: Path) -> None:
    write_env_file(tmp_path / ".env", example)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {".env", "example"}


def test_an_existing_file_is_left_alone(tmp_path: Path, example: Path) -> None:
    (tmp_path / ".env").write_text("SECRET_KEY=")
    assert not write_env_file(tmp_path / ".env", example)
    assert (tmp_path / ".env").read_text() == "SECRET_KEY="


def test_comments_and_other_values_stay(tmp_path: Path, example: Path) -> None:
    write_env_file(tmp_path / ".env", example)
    changed = {"SECRET_KEY", "POSTGRES_PASSWORD", "ADMIN_PASSWORD"}
    changed |= {"REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT"}
    lines = zip(example.read_text().splitlines(), (tmp_path / ".env").read_text().splitlines(), strict=True)
    assert {before.split("=")[0] for before, after in lines if before != after} == changed


def test_a_busy_port_is_replaced_by_one_free_port_for_all_three(tmp_path: Path, example: Path) -> None:
    write_env_file(tmp_path / ".env", example)
    written, given = values(tmp_path / ".env"), values(example)
    ports = {written[f"REDIS_{use}_PORT"] for use in ("CACHE", "QUEUE", "RATE_LIMIT")}
    assert len(ports) == 1
    assert is_port_free(int(ports.pop()))
    assert written["POSTGRES_PORT"] == given["POSTGRES_PORT"]


def test_without_hard_links_it_is_complete_too_and_an_existing_one_is_left_alone(
    tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert write_env_file(tmp_path / ".env", example)
    assert len(values(tmp_path / ".env")["SECRET_KEY"]) == 64
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    written = (tmp_path / ".env").read_text()
    assert not _create(tmp_path / ".env", "by somebody who was slower")
    assert (tmp_path / ".env").read_text() == written
    assert {path.name for path in tmp_path.iterdir()} == {".env", "example"}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, example: Path) -> None:
    target = tmp_path / "missing" / ".env"
    with pytest.raises(ServiceError, match=f"^{re.escape(str(target))} can't be written: No such file or directory"):
        write_env_file(target, example)


def test_the_shipped_ports_are_not_among_those_that_systems_give_to_outgoing_connections() -> None:
    shipped = values(EXAMPLE)
    ports = {name: int(port) for name, port in shipped.items() if name.endswith("_PORT") and port}
    assert {"POSTGRES_PORT", "REDIS_CACHE_PORT"} <= ports.keys()
    assert all(port < 32_768 for port in ports.values())
