"""gunicorn with `src/gunicorn.conf.py`: how it ends, whom it believes, what it writes."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from app.core.config import Settings
from scripts.embedded import free_port
from tests.deploy.files import COMPOSE_PROD, services
from tests.deploy.image import Image
from tests.processes import BIN, ROOT, START_SECONDS, wait_for_answer

CLASSES = pytest.mark.parametrize("worker_class", ["uvicorn.workers.UvicornWorker", "uvicorn_worker.UvicornWorker"])
DRAIN_SECONDS = 1


@pytest.fixture
def quick(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's settings, but for the time that open requests get: nobody wants to wait for ten seconds."""
    conf = Path(image.environment["GUNICORN_CMD_ARGS"].partition("=")[2])
    text = conf.read_text()
    assert "\nDRAIN_SECONDS = 10 " in text
    text = text.replace("DRAIN_SECONDS = 10", f"DRAIN_SECONDS = {DRAIN_SECONDS}")
    (tmp_path / "gunicorn.conf.py").write_text(text)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--config={tmp_path / 'gunicorn.conf.py'}")
    monkeypatch.setenv("PYTHONPATH", f"{image.environment['PYTHONPATH']}:{ROOT}")
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")


def printed(image: Image, *words: str) -> dict[str, str]:
    """The settings that gunicorn arrives at."""
    command = [str(BIN / "gunicorn"), "--print-config", *words, "app.main:app"]
    done = subprocess.run(command, cwd=image.workdir, capture_output=True, text=True, check=True)
    lines = (line.partition("=") for line in done.stdout.splitlines() if " = " in line)
    return {name.strip(): value.strip() for name, _, value in lines}


def test_its_settings(settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", "5")
    found = printed(image, "-k", "uvicorn_worker.UvicornWorker")
    assert found["graceful_timeout"] == "23"  # 5, 3 for connections, 10 for requests, 5 to close
    assert found["control_socket_disable"] == "True"
    assert found["preload_app"] == "True"  # Nobody is accepted who has to wait until it is loaded.
    assert found["forwarded_allow_ips"] == "[]"
    assert 0 < int(found["max_requests_jitter"]) < int(found["max_requests"])
    # While a worker finishes it gives no sign of life, after one that may be half of this time old.
    assert int(found["timeout"]) / 2 > 10 + 5
    grace = services(COMPOSE_PROD)["fastapi1"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > int(found["graceful_timeout"])


def test_a_broken_setting_ends_it_with_one_line(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", "long")
    command = [str(BIN / "gunicorn"), "app.main:app", "-k", "uvicorn_worker.UvicornWorker"]
    done = subprocess.run(command, cwd=image.workdir, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "SHUTDOWN_DELAY_SECONDS must be for how many seconds a server that was told to stop goes on serving, 0 to 300."
    ]


def test_a_hup_with_a_broken_setting_changes_nothing(
    settings: Settings, image: Image, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read anew, it would end the master, and leave workers that nobody minds."""
    file = tmp_path / "settings"
    file.write_text("SHUTDOWN_DELAY_SECONDS=0\n")
    monkeypatch.setenv("ENV_FILE", str(file))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["gunicorn", "tests.deploy.echo_app:app", "-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{port}"]
    server = subprocess.Popen([BIN / command[0], *command[1:]], cwd=image.workdir, start_new_session=True)
    try:
        wait_for_answer(url, server)
        before = httpx2.get(url).json()["pid"]
        file.write_text("SHUTDOWN_DELAY_SECONDS=long\n")
        server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + START_SECONDS
        while before == (now := httpx2.get(url).json()["pid"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert now != before
        server.terminate()
        assert server.wait(START_SECONDS) == 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@CLASSES
def test_it_believes_nobody_and_drains_with_a_limit(
    settings: Settings, image: Image, quick: None, capfd: pytest.CaptureFixture[str], worker_class: str
) -> None:
    """What can be finished in time is, what cannot is cut off, and it ends well. Its lines are the app's."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["gunicorn", "tests.deploy.echo_app:app", "-w", "2", "-k", worker_class, "-b", f"127.0.0.1:{port}"]
    server = subprocess.Popen([BIN / command[0], *command[1:]], cwd=image.workdir, start_new_session=True)
    try:
        wait_for_answer(url, server)
        said = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
        answer = httpx2.get(url, headers=said)
        assert answer.json()["client"][0] == "127.0.0.1"
        assert answer.json()["scheme"] == "http"
        assert "Server" not in answer.headers
        with ThreadPoolExecutor(2) as pool:
            short = pool.submit(httpx2.get, f"{url}/wait?seconds=0.8", timeout=START_SECONDS)
            endless = pool.submit(httpx2.get, f"{url}/wait?seconds=600", timeout=START_SECONDS)
            time.sleep(0.4)  # Both have begun.
            server.terminate()
            assert server.wait(START_SECONDS) == 0
            assert short.result().status_code == 200
            assert endless.result().status_code == 500
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {"Starting gunicorn", "Booting worker"} <= {" ".join(line["event"].split()[:2]) for line in lines}
