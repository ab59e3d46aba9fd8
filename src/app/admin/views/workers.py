"""Workers."""

from collections import defaultdict
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette_admin.routing import route

from app.admin.views.away import unless_away
from app.admin.views.base import ConsolePage, session_of
from app.admin.views.fields import in_utc
from app.admin.views.job_fields import Progress
from app.core.utils import queue
from app.core.utils.queue import Job, WorkerSeen
from app.core.utils.queue.sending import current_transport
from app.crud.crud_job import crud_jobs

MOST_JOBS: Final = 500
GONE: Final = 60.0  # seconds after which one that is late is said to be gone


class WorkersPage(ConsolePage):
    """The workers that live, or did so until a moment ago, and the jobs they run."""

    menu_label = "Workers"
    icon = "fa-solid fa-gears"
    path = "/workers"
    route_name = "workers"
    time = staticmethod(in_utc)
    progress_of = staticmethod(Progress.of)

    @route("")
    async def index(self, request: Request) -> Response:
        """Who works, and on what."""
        workers = await unless_away(queue.living_workers(current_transport().link))
        jobs: defaultdict[str, list[Job]] = defaultdict(list)
        running = await crud_jobs.running(session_of(request), MOST_JOBS)
        for job in running:
            jobs[job.worker or ""].append(job)
        values = {
            "workers": workers,
            "jobs": jobs,
            "others": sorted(jobs.keys() - {worker.name for worker in workers or ()}),
            "most": MOST_JOBS if len(running) == MOST_JOBS else None,
        }
        return self.page(request, "workers.html", values)

    @staticmethod
    def state_of(worker: WorkerSeen) -> str:
        """How it is, in a word."""
        if not worker.late:
            return "alive"
        return "gone" if worker.heard_seconds > GONE else "late"
