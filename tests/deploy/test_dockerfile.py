"""The image: what is in it, who runs it, and that its commands work."""

import re
import subprocess
from pathlib import Path

import httpx2
import pytest
from uvicorn.main import main as uvicorn_command

from app.core.config import Settings
from tests.deploy.files import DOCKERFILE, commented, with_lines_uncommented
from tests.deploy.image import EVERYWHERE, Image, image_in, instructions
from tests.processes import BIN, ROOT, running_api

PYTHONS = {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "GUNICORN_CMD_ARGS"}
GUNICORN = ["gunicorn", "app.main:app", "-w", "4", "-k", "uvicorn.workers.UvicornWorker", "-b", f"{EVERYWHERE}:8000"]
UVICORN = ["uvicorn", "app.main:app", "--host", EVERYWHERE, "--port", "8000", "--reload"]


def with_gunicorn() -> str:
    return with_lines_uncommented(commented(DOCKERFILE.read_text(), 'CMD ["uvicorn"'), 'CMD ["gunicorn"')


def cmds(dockerfile: str) -> list[str]:
    return [argument for name, argument in instructions(dockerfile) if name == "CMD"]


def test_it_is_not_root_s() -> None:
    found = instructions(DOCKERFILE.read_text())
    users = [argument for name, argument in found if name == "USER"]
    assert users == ["10001:10001"]
    after = [name for name, _ in found[found.index(("USER", users[0])) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert ("STOPSIGNAL", "SIGTERM") in found


def test_the_last_stage_has_nothing_but_the_locked_packages_and_the_code() -> None:
    text = DOCKERFILE.read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["python:3.13-slim"] * 2
    copies = [argument for name, argument in instructions(text) if name == "COPY"]
    assert copies == ["--from=builder /venv /venv", "src ./src"]
    assert "--require-hashes --no-deps" in text
    assert "apt-get" not in text
    assert (ROOT / "requirements.txt").exists()


def test_it_takes_no_secret_along(tmp_path: Path) -> None:
    """Not even from a developer's folder: `.dockerignore` lets in what is copied, less what git leaves out."""
    names = {path.name for path in image_in(tmp_path).workdir.rglob("*")}
    assert {"src", "main.py", "gunicorn.conf.py", "alembic.ini"} <= names
    assert not {name for name in names if name.startswith(".env") or name.endswith((".pyc", ".log"))}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    environment = " ".join(
        argument for name, argument in instructions(DOCKERFILE.read_text()) if name in {"ENV", "ARG"}
    )
    assert not re.search("SECRET|PASSWORD|TOKEN", environment)


def test_what_it_sets_exists(image: Image) -> None:
    options = {f"UVICORN_{option.name}".upper() for option in uvicorn_command.params}
    assert set(image.environment) <= PYTHONS | options


def test_the_switch_to_gunicorn() -> None:
    assert cmds(DOCKERFILE.read_text()) == [str(UVICORN).replace("'", '"')]
    assert cmds(with_gunicorn()) == [str(GUNICORN).replace("'", '"')]


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
def test_its_commands_serve(
    settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """And its health check agrees, and neither tells which server it is nor believes a proxy by itself."""
    few = [word if word != "4" else "2" for word in command]  # tests/e2e/test_founding_commands.py has all four workers
    words = [word.replace(EVERYWHERE, "127.0.0.1").replace("8000", "{port}") for word in few]
    with running_api(*words, cwd=image.workdir) as url:
        answer = httpx2.get(f"{url}/api/v1/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        assert "Server" not in answer.headers
        check = [word.replace("http://127.0.0.1:8000", url) for word in image.health_check]
        assert url in check[-1]
        assert subprocess.run([BIN / check[0], *check[1:]], check=False).returncode == 0
    assert subprocess.run([BIN / check[0], *check[1:]], check=False, capture_output=True).returncode == 1


def test_uvicorn_believes_nobody(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says nothing about it, and the environment may even tell it to."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("PYTHONPATH", f"{image.environment['PYTHONPATH']}:{ROOT}")
    command = ("uvicorn", "tests.deploy.echo_app:app", "--port", "{port}")
    with running_api(*command, cwd=image.workdir) as url:
        told = httpx2.get(url, headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}).json()
    assert (told["client"][0], told["scheme"]) == ("127.0.0.1", "http")


@pytest.mark.parametrize("first", ["app.core.config", "src.app.core.config"])
def test_both_names_are_one_package(image: Image, settings: Settings, first: str) -> None:
    code = f"import {first}, app.core.config, src.app.core.config as b; print(app.core.config is b, b.__file__)"
    done = subprocess.run([BIN / "python", "-c", code], cwd=image.workdir, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(image.workdir / "src/app/core/config.py")]
