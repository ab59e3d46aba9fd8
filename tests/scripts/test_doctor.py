"""The doctor as a command: its lines, its JSON, its options and its exit code."""

import json
import sys
from contextlib import ExitStack

import pytest

from app.core.config import Settings, get_settings
from scripts import doctor
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.doctor_kit import run
from tests.processes import process, running_worker, wait_for_worker


def test_where_all_is_well_no_line_says_otherwise(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch_folder() as folder, ExitStack() as stack:
        valkey = stack.enter_context(Valkey(folder / "valkey", port=free_port(), durable=True))
        for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
            monkeypatch.setenv(f"REDIS_{use}_PORT", str(valkey.port))
        settings = "src.app.core.worker.settings."
        stack.enter_context(running_worker(valkey.port, f"{settings}WorkerSettings"))
        wait_for_worker(stack.enter_context(process("arq", f"{settings}LongWorkerSettings")), valkey.port)

        done = run()
        assert (done.returncode, done.stderr) == (0, "")
        found = done.stdout.splitlines()
        assert len(found) > 15
        assert [line for line in found if not line.startswith("ok ")] == []
        assert [line for line in found if "workers: arq:queue: 1 seen, the last" in line]
        assert [line for line in found if "workers: arq:queue:long: 1 seen, the last" in line]

        told = json.loads(run("--json", "--workers", "2", WEB_CONCURRENCY="3").stdout)
        assert told["ok"] is True
        (connections,) = [finding for finding in told["findings"] if finding["check"] == "database: connections"]
        assert connections["text"].startswith("3 web x 12 + 2 worker x 34 + 1 long worker x 11 = 115 of ")


def test_a_number_of_processes_is_a_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", "--workers", "many"])
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    assert stopped.value.code == 2
    assert "'many' is not a number of processes" in capsys.readouterr().err


def test_a_failure_is_an_exit_code(settings: Settings) -> None:
    done = run(POSTGRES_PORT=str(free_port()), REDIS_QUEUE_PORT=str(free_port()))
    assert done.returncode == 1
    assert "Remedy: start PostgreSQL there, or correct POSTGRES_SERVER and POSTGRES_PORT" in done.stdout
    assert "valkey (queue): 127.0.0.1:" in done.stdout
    assert "Remedy: start it, or correct REDIS_QUEUE_URL" in done.stdout
    assert "schema" not in done.stdout  # Of a database that is away there is nothing more to say.


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_broken_settings_are_all_there_is_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    monkeypatch.setenv("POSTGRES_PORT", "x")
    monkeypatch.setenv("SECRET_KEY", "short")
    monkeypatch.setattr(sys, "argv", ["doctor", *form])
    get_settings.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    get_settings.cache_clear()
    said = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "POSTGRES_PORT must be a TCP port, 1 to 65535" in said
    assert "SECRET_KEY must be at least 32 random characters" in said
    assert "src/.env" in said
    assert "short" not in said
