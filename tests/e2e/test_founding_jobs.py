"""The founding document's examples of jobs, in a copy of this project, with real processes.

They are as written but for two things: it says posts where users exist here, and it forgets an `await`.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx2
import pytest
from arq.worker import JobExecutionFailed

from app.core.config import Settings
from app.core.db.database import close_database, open_database, transaction
from app.core.utils import queue
from app.core.utils.queue import ArqJob
from app.crud.crud_users import crud_users
from scripts.embedded import Valkey
from tests.conftest import opened_session
from tests.helper import create_user
from tests.processes import BIN, ROOT, running_api, wait_for_worker

pytestmark = pytest.mark.anyio

PATIENCE = 30.0  # seconds

# What is not the document's own is what its examples leave out: imports, bodies, and names of things that exist here.

FUNCTIONS = """
import asyncio
import logging

from arq.worker import Worker
from ...core.db.database import async_get_db


async def sample_background_task(ctx, name: str) -> str:
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


async def startup(ctx: Worker) -> None:
    ctx["db"] = await anext(async_get_db())
    logging.info("Worker Started")

async def shutdown(ctx: Worker) -> None:
    await ctx["db"].close()
    logging.info("Worker end")
"""

YOUR_MODULE = """
from typing import Any

from arq.worker import Worker
from ...crud.crud_users import crud_users
from ...models.user import UserRead


async def sample_complex_background_task(ctx, user_id: int, name: str) -> None:
    user = await crud_users.get(ctx["db"], user_id)
    user.name = name
    if name == "Nobody":
        await ctx["db"].flush()
        raise ValueError("There is no such name.")


async def your_background_function(
    ctx: Worker,
    user_id: int,
) -> Any:
    db = ctx["db"]
    user = await crud_users.get(db=db, schema_to_select=UserRead, id=user_id)
    return user.model_dump(include={"name", "email"})
"""

HANDLERS = """
from fastapi import APIRouter
from pydantic import BaseModel

from ...core.utils import queue
from ...core.utils.queue import ArqJob

router = APIRouter(prefix="/founding")


class Job(BaseModel):
    id: str


@router.post("/task", response_model=Job, status_code=201)
async def create_task(message: str):
    job = await queue.pool.enqueue_job("sample_background_task", message)
    return {"id": job.job_id}


@router.get("/task/{task_id}")
async def get_task(task_id: str):
    job = ArqJob(task_id, queue.pool)
    return await job.info()
"""

IMPORTS = """
from .functions import sample_background_task
from .your_module import sample_complex_background_task, your_background_function
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project into which a newcomer has put the document's examples."""
    for name in list(os.environ):
        if name.startswith(("COV_", "COVERAGE_")):  # It is not the copy that is measured.
            monkeypatch.delenv(name)
    src = shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns(".env", "logs", "__pycache__"))
    worker = src / "app" / "core" / "worker"
    (worker / "functions.py").write_text(FUNCTIONS)
    (worker / "your_module.py").write_text(YOUR_MODULE)
    insert(worker / "settings.py", "from app.core.worker.options import job\n", IMPORTS)
    listed = "        sample_complex_background_task,\n        your_background_function,\n"
    insert(worker / "settings.py", "        sample_background_task,\n", listed)
    (src / "app" / "api" / "v1" / "founding.py").write_text(HANDLERS)
    insert(src / "app" / "api" / "__init__.py", "    email_verification,\n", "    founding,\n")
    mounted = "            limited.include_router(founding.router)\n"
    insert(src / "app" / "api" / "__init__.py", "            limited.include_router(tasks.router)\n", mounted)
    return tmp_path


def insert(file: Path, after: str, lines: str) -> None:
    code = file.read_text()
    assert code.count(after) == 1, after
    file.write_text(code.replace(after, after + lines))


async def test_the_examples_of_the_chapter_work(project: Path, settings: Settings, valkey: Valkey) -> None:
    async with opened_session(settings) as db:
        user_id = (await create_user(db, name="Ada")).id
    command = "arq src.app.core.worker.settings.WorkerSettings"
    with running_worker_in(project, command, valkey) as log, running_api(cwd=project) as url:
        created = httpx2.post(f"{url}/api/v1/founding/task", params={"message": "hello"})
        assert created.status_code == 201
        assert created.json().keys() == {"id"}
        task = f"{url}/api/v1/founding/task/{created.json()['id']}"
        assert httpx2.get(task).json()["function"] == "sample_background_task"

        async with opened_pool(settings) as pool:
            rename = await pool.enqueue_job("sample_complex_background_task", user_id, "Ada Lovelace")
            assert rename is not None
            assert await rename.result(PATIENCE, poll_delay=0.05) is None
            read = await pool.enqueue_job("your_background_function", user_id=user_id)
            assert read is not None
            assert (await read.result(PATIENCE, poll_delay=0.05))["name"] == "Ada Lovelace"

            wrong = await pool.enqueue_job("sample_complex_background_task", user_id, "Nobody", _job_try=5)
            assert wrong is not None
            with pytest.raises(JobExecutionFailed, match="There is no such name"):
                await wrong.result(PATIENCE, poll_delay=0.05)
            async with transaction() as db:
                user = await crud_users.get(db=db, id=user_id)
                assert user is not None
                assert user.name == "Ada Lovelace", "what fails is rolled back"

        done = until_done(task)
        assert (done["result"], done["success"]) == ("Task hello is complete!", True)
        assert done["args"] == ["hello"]
        assert httpx2.get(f"{task}0").json() is None
    assert "Worker Started" in log.read_text()
    assert "Worker end" in log.read_text()
    assert "hook failed" not in log.read_text()


async def test_settings_in_a_module_of_ones_own_are_durable_once_they_import_anything_of_the_workers(
    settings: Settings, valkey: Valkey, tmp_path: Path
) -> None:
    code = """
        import src
        from app.core.worker.functions import shutdown, startup

        async def sample_background_task(ctx, name: str) -> str:
            await ctx["db"].connection()
            return f"Task {name} is complete!"

        class WorkerSettings:
            functions = [sample_background_task]
            on_startup = startup
            on_shutdown = shutdown
        """
    (tmp_path / "workers_of_mine.py").write_text(dedent(code))
    with running_worker_in(ROOT, "arq workers_of_mine.WorkerSettings", valkey, PYTHONPATH=str(tmp_path)):
        async with opened_pool(settings) as pool:
            job = await pool.enqueue_job("sample_background_task", "hello")
            assert isinstance(job, ArqJob)
            assert await job.result(PATIENCE, poll_delay=0.05) == "Task hello is complete!"


# ---- What it takes ----


@contextmanager
def running_worker_in(folder: Path, command: str, valkey: Valkey, **environment: str) -> Iterator[Path]:
    """A worker by the document's command, in this folder, once it takes jobs. Yields its log, complete at the end."""
    name, *words = command.split()
    log = folder / "worker.log" if folder != ROOT else Path(os.devnull)
    with log.open("wb") as file:
        worker = subprocess.Popen(
            [BIN / name, *words], cwd=folder, stdout=file, stderr=file, env=os.environ | environment
        )
        try:
            wait_for_worker(worker, valkey.port)
            yield log
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE) == 0
        finally:
            worker.kill()
            worker.wait()


@asynccontextmanager
async def opened_pool(settings: Settings) -> AsyncIterator[queue.JobPool]:
    """The queue, in this process."""
    engine = open_database(settings)
    try:
        async with queue.open_queue(settings) as pool:
            yield pool
    finally:
        await close_database(engine)


def until_done(url: str) -> dict[str, Any]:
    """What is told of a job once it has a result."""
    deadline = time.monotonic() + PATIENCE
    while "result" not in (told := httpx2.get(url).json()):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return dict(told)
