"""The commands of the founding document, to the letter, as real processes on a migrated database."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from app.core.config import Settings
from tests.processes import BIN, ROOT, running_api

WORKER = "arq src.app.core.worker.settings.WorkerSettings"


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("uvicorn src.app.main:app --reload", "."),
        ("gunicorn app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:8000", "src"),
        ("gunicorn app.main:app -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:8000", "src"),
    ],
)
def test_the_servers_start_and_answer(settings: Settings, command: str, folder: str) -> None:
    # Only the port is another one: several of these tests run at once.
    words = shlex.split(
        command.replace("0.0.0.0:8000", "127.0.0.1:{port}").replace("127.0.0.1:8000", "127.0.0.1:{port}")
    )
    if words[0] == "uvicorn":
        words += ["--port", "{port}"]
    with running_api(*words, cwd=ROOT / folder) as url:
        assert httpx2.get(f"{url}/api/v1/ready").json()["status"] == "ready"
        assert httpx2.get(f"{url}/docs").status_code == 200


def test_alembic_in_src(settings: Settings, tmp_path: Path) -> None:
    """In a copy of `src/`, since it writes a file."""
    src = shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns(".env", "logs"))
    versions = src / "migrations" / "versions"
    tier = src / "app" / "models" / "tier.py"  # Without a change there would be nothing to write.
    tier.write_text(tier.read_text().replace("unique=True)", "unique=True)\n    colour: str | None = None", 1))
    before = len(list(versions.glob("*.py")))
    command = 'alembic revision --autogenerate -m "..." && alembic upgrade head'
    done = subprocess.run(
        command,
        shell=True,  # The command is the document's, && included.
        cwd=src,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(versions.glob("*.py"))) == before + 1


@pytest.mark.parametrize("script", ["create_first_superuser", "create_first_tier"])
def test_the_scripts(settings: Settings, script: str) -> None:
    done = subprocess.run(
        [BIN / "python", "-m", f"src.scripts.{script}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "created." in done.stdout


def test_a_broken_setting_stops_every_command_with_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_QUEUE_PORT", "five")
    commands = {
        "uvicorn src.app.main:app": ".",
        WORKER: ".",
        "python -m src.scripts.create_first_tier": ".",
        "alembic upgrade head": "src",
    }
    for command, folder in commands.items():
        name, *args = shlex.split(command)
        done = subprocess.run([BIN / name, *args], cwd=ROOT / folder, capture_output=True, text=True, check=False)
        assert done.returncode != 0, command
        assert done.stderr.strip() == "REDIS_QUEUE_PORT must be a TCP port, 1 to 65535.", command
