"""A secret in the output of a test is noticed; in errors, metrics and jobs as well."""

import os
import re
import subprocess
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tests.canaries import refuse_secrets_in_jobs, secrets_in
from tests.conftest import connect
from tests.helper import HASHED_PASSWORD, PASSWORD
from tests.processes import BIN, ROOT

LEAKS = """
import logging, os, subprocess

def test_printed():
    print("so it is", os.environ["SECRET_KEY"])

def test_by_a_process():
    subprocess.run(["sh", "-c", "echo $POSTGRES_PASSWORD >&2"])

def test_captured_by_a_test(capsys):
    print(os.environ["SECRET_KEY"])
    capsys.readouterr()

def test_taken_from_a_process():
    subprocess.run(["sh", "-c", "echo $SECRET_KEY"], capture_output=True)

def test_logged():
    logging.getLogger().warning(os.environ["ADMIN_PASSWORD"])

def test_nothing():
    print("nothing")
"""


def test_a_test_with_a_secret_in_its_output_fails(tmp_path: Path) -> None:
    (tmp_path / "test_leak.py").write_text(LEAKS)
    options = ["-v", "-p", "tests.canaries", "-p", "no:cacheprovider"]
    command = [str(BIN / "python"), "-m", "pytest", *options, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    with (tmp_path / "out").open("w+") as out:  # Not a pipe: what comes by one is looked at here as well.
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=out, check=False)
        out.seek(0)
        printed = out.read()
    assert done.returncode == 1, printed
    assert set(re.findall(r"(\w+) FAILED", printed)) == set(re.findall(r"def (\w+)", LEAKS)) - {"test_nothing"}


def test_forms() -> None:
    assert secrets_in(f"hash {HASHED_PASSWORD}") == ["a password's hash"]
    assert secrets_in("Bearer eyJhbGciOiJIUzI1NiIs.eyJzdWIiOiIxMjM0.c2ln") == ["a token"]
    assert secrets_in(f"it is {PASSWORD}!") == ["a user's password"]
    assert secrets_in("nothing") == []


def test_errors_and_metrics_are_looked_at() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        text = f"# HELP {PASSWORD}" if request.url.path == "/metrics" else PASSWORD
        return httpx2.Response(500 if request.url.path == "/error" else 200, text=text)

    with httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://test") as client:
        assert client.get("/login").text == PASSWORD
        for path in ("/metrics", "/error"):
            with pytest.raises(AssertionError, match="a user's password in the answer"):
                client.get(path)


@pytest.mark.anyio
async def test_jobs_are_looked_at(database: str) -> None:
    connection: asyncpg.Connection = await connect(database)
    insert = (
        "INSERT INTO job (id, queue, function, args, keywords, created_at, run_after, result)"
        " VALUES ('1', 'q', 'f', '[]', '{}', now(), now(), to_json($1::text))"
    )
    await connection.execute(insert, PASSWORD)
    with pytest.raises(AssertionError, match="in a job's result"):
        await refuse_secrets_in_jobs(connection)
    await connection.execute("DELETE FROM job")
    await connection.close()
