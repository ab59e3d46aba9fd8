"""How long `make run` takes until it answers: in a copy of this project with data and ports of its own."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.machine import ROOT, unpin
from bench.servers import STOP_SECONDS
from scripts.embedded import free_port, scratch_folder

LIMIT: Final = 60.0  # seconds
LOOK: Final = 0.02  # seconds between two looks
_SETTING: Final = re.compile(r"(?m)^(\w+)=.*$")


def seconds_to_first_answer() -> dict[str, float]:
    """In a fresh clone, where PostgreSQL makes its data first, and from then on; once everything is installed.

    Raises: SystemExit when it does not answer.
    """
    with scratch_folder() as folder:
        project = _copied(folder / "project")
        return {"first start, seconds": _started(project), "later start, seconds": _started(project)}


def _copied(project: Path) -> Path:
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns(".env", "logs"))
    for file in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / file, project)
    (project / ".venv").symlink_to(Path(sys.prefix))
    example = project / "src" / ".env.example"
    ports = example.read_text().replace("25432", str(free_port())).replace("25379", str(free_port()))
    example.write_text(ports)
    return project


def _started(project: Path) -> float:
    settings = {*_SETTING.findall((ROOT / "src" / ".env.example").read_text()), "ENV_FILE"}
    port = free_port()
    began = time.monotonic()
    run = subprocess.Popen(
        [project / ".venv" / "bin" / "python", "-m", "src.scripts.dev", "run", "--port", str(port)],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name not in settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=unpin,
    )
    try:
        while not _answers(port):
            if run.poll() is not None or time.monotonic() - began > LIMIT:
                raise SystemExit("`make run` does not answer.")
            time.sleep(LOOK)
        return time.monotonic() - began
    finally:
        run.send_signal(signal.SIGINT)
        try:
            run.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request("GET", "/api/v1/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
