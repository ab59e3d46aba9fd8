"""The README's session, run as it stands there."""

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
from redis import Redis

from app.core.config import Settings
from scripts import create_first_superuser, create_first_tier
from tests.processes import BIN, ROOT, process, running_api
from tests.scripts.pids import wait_until


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, as the README does")
def test_the_first_ten_minutes(settings: Settings) -> None:
    readme = (ROOT / "README.md").read_text()
    session = re.search(r"<!-- session:.*?-->\n```sh\n(.*?)```", readme, re.DOTALL)
    assert session is not None
    create_first_superuser.run()
    create_first_tier.run()
    worker = process("arq", "src.app.core.worker.settings.WorkerSettings")
    with running_api() as url, worker, Redis.from_url(settings.redis_queue_url) as queue:
        wait_until(lambda: bool(queue.keys("*:health-check")))  # The session sleeps for as long as the task takes.
        script = (
            session.group(1)
            .replace("http://127.0.0.1:8000", url)
            .replace("'the password that make run printed'", '"$ADMIN_PASSWORD"')
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    ada, rule, moved, limits, task = _json_values(done.stdout)
    assert ada["username"] == "ada"
    assert rule["path"] == "/api/v1/users"
    assert moved["tier_id"] == rule["tier_id"]
    assert [limit["name"] for limit in limits] == ["listing", "default"]
    assert task["result"] == "Task hello is complete!"
    # The answers that the README shows have the shape of the real ones.
    shown = re.search(r"```json\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    for line, answer in zip(shown.group(1).splitlines(), (moved, limits, task), strict=True):
        example = json.loads(line)
        assert (example[0].keys() if isinstance(example, list) else example.keys()) == (
            answer[0].keys() if isinstance(answer, list) else answer.keys()
        )


def _json_values(text: str) -> list[Any]:
    """The JSON values that curl printed one after another, without a line between them."""
    decoder, at = json.JSONDecoder(), 0
    values = []
    while at < len(text.rstrip()):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values
