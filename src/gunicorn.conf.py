# ruff: noqa: N999 -- the name that gunicorn looks for
"""gunicorn's settings. It reads this file in its working directory, or where `--config` or GUNICORN_CMD_ARGS says.

What stands on the command line wins, so the documented commands decide about address, workers and worker class. The
number of workers is otherwise WEB_CONCURRENCY's, or 1.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

sys.path.insert(0, str(Path(__file__).parent))  # gunicorn itself adds it later.

from app.core.config import environment_of, get_settings
from app.core.draining import LINGER
from app.core.logger import configure_logging
from app.core.memory import settle

DRAIN_SECONDS = 10  # that open requests have, once there are no new ones
CLOSE_SECONDS = 5  # for the app's connections to be closed after that

# Raises here, once, and stays: a HUP reads this file again, and workers are forks with these very settings.
_settings = get_settings()
configure_logging(environment_of(_settings))


class AppLogger(Logger):
    """gunicorn's own lines, among the app's and in their form."""

    def setup(self, cfg: Any) -> None:
        """Takes the place of handlers of its own."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = AppLogger

# A worker serves on for the delay, waits for its connections to be closed, and then for what it has begun to answer.
graceful_timeout = int(_settings.SHUTDOWN_DELAY_SECONDS + LINGER + DRAIN_SECONDS + CLOSE_SECONDS)
# Seconds without a sign of life, of which there are two in this time: of a worker that blocks, however long a request
# may take. While it finishes there are none.
timeout = 60
keepalive = 5  # seconds that an idle connection is kept; proxies have to close theirs earlier

# Loaded once, before anything listens: nobody is accepted who would have to wait for it, and a worker that takes
# another's place serves at once. A HUP brings neither new code nor new settings (docs/deploy.md).
preload_app = True

# A worker that leaks anything is replaced before it matters, and not all at once.
max_requests = 100_000
max_requests_jitter = 20_000

control_socket_disable = True  # It would be in a home folder, which a container need not have.
if os.access("/dev/shm", os.W_OK):  # noqa: S108 -- gunicorn makes a file there that nobody can open by name
    worker_tmp_dir = "/dev/shm"  # noqa: S108 -- the same; a disk that hangs would look like a worker that does

# Whose X-Forwarded-For counts is the app's decision (TRUSTED_PROXIES), and neither gunicorn's nor uvicorn's.
forwarded_allow_ips = ""

# `/metrics` is about all workers: they count in files of this folder. What counts looks for it when the app is
# imported, after this file.
_OURS = f"slipway-metrics-{os.getpid()}-"
_folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")


def _remove(folder: str, master: int) -> None:
    if os.getpid() == master:  # Workers are forks: what it does at its end, they do too.
        shutil.rmtree(folder, ignore_errors=True)


# One that is given is its giver's, unless that is a master which has started this one in its place (SIGUSR2).
if not _folder or (Path(_folder).name.startswith("slipway-metrics-") and not Path(_folder).name.startswith(_OURS)):
    _folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=_OURS)
    atexit.register(_remove, _folder, os.getpid())


def when_ready(server: Any) -> None:
    """The master has the app loaded, and serves nobody: what it counts is not among the workers'."""
    for file in Path(_folder).glob(f"*_{os.getpid()}.db"):
        file.unlink()
    settle()  # Workers are forks: what the collector writes to is no longer shared, 10 MB of each.


def post_worker_init(worker: Any) -> None:
    """Tells uvicorn what its worker class has no setting for. Both classes keep uvicorn's configuration there."""
    uvicorn = worker.config
    uvicorn.timeout_graceful_shutdown = DRAIN_SECONDS
    uvicorn.proxy_headers = False
    uvicorn.server_header = False
