"""Jobs."""

from collections.abc import Sequence
from typing import Any, Final

from markupsafe import Markup
from sqlalchemy import ColumnElement, Select, false, func, or_
from sqlalchemy.orm import load_only
from sqlmodel import col, select
from starlette.requests import Request
from starlette_admin.actions import ActionSelection, action, row_action
from starlette_admin.exceptions import ActionFailed
from starlette_admin.fields import IntegerField
from starlette_admin.filters import FilterGroup
from starlette_admin.flash import flash
from starlette_admin.types import RequestAction

from app.admin.views.base import audit, session_of
from app.admin.views.fields import UserField, UtcField, in_utc, load_usernames
from app.admin.views.job_fields import IsFunction, Progress, ProgressField, StatusField, TextField, pretty, these
from app.admin.views.job_plots import JobsNow
from app.admin.views.search import Is, SearchedView, StartsWith
from app.core.utils import queue
from app.core.utils.queue import Job, JobState, JobStatus
from app.crud.crud_job import crud_jobs, not_expired
from app.crud.crud_job_statistics import functions_present
from app.models.job import JobHasEnded, JobNotReplayable

MOST_REPLAYED: Final = 1000  # at once
_LISTED = (
    Job.id,
    Job.queue,
    Job.function,
    Job.owner_id,
    Job.state,
    Job.attempt,
    Job.cancel_requested,
    Job.created_at,
    Job.run_after,
    Job.started_at,
    Job.finished_at,
    Job.worker,
    Job.progress,
)


def _replay_form(request: Request) -> str:
    names: Sequence[str] = getattr(request.state, "job_functions", ())
    options = Markup("").join(Markup("<option>{}</option>").format(name) for name in names)
    return Markup(
        '<form><label class="form-label mt-3" for="replay-function">Function</label>'
        '<select class="form-select" id="replay-function" name="function"><option value="">all of them</option>{}'
        "</select></form>"
    ).format(options)


class JobView(SearchedView[Job]):
    """Jobs. Nobody edits one: they are retried, cancelled and replayed."""

    noun = "job"
    fields = (
        TextField("function", filters=these(IsFunction, StartsWith)),
        StatusField("status"),
        ProgressField("progress", filters=these()),
        TextField("id", label="Id", filters=these(), list_template="console/job_id.html"),
        TextField("queue", filters=these(Is, StartsWith)),
        IntegerField("attempt", filters=these()),
        UserField("owner_id", label="Owner"),
        UtcField("created_at", label="Created"),
        UtcField("started_at", label="Started"),
        UtcField("finished_at", label="Finished"),
        TextField("worker", filters=these(Is, StartsWith)),
    )
    searchable_fields = ("function", "status", "queue", "owner_id", "created_at", "started_at", "finished_at", "worker")
    sortable_fields = ("created_at",)
    fields_default_sort = (("created_at", True),)
    actions = ("replay", "replay_all")
    row_actions = ("view", "retry", "cancel", "replay")
    list_template = "console/jobs.html"
    detail_template = "console/job.html"
    time = staticmethod(in_utc)
    pretty = staticmethod(pretty)
    progress_of = staticmethod(Progress.of)

    def __init__(self) -> None:
        super().__init__(Job, icon="fa-solid fa-list-check", menu_label="Jobs", display_name="job", key="job")
        self._pk_coerce = str  # The library does not find out what SQLModel's texts are.

    async def repr(self, obj: Any, request: Request) -> str:
        return str(obj.id)

    # ---- What is asked ----

    def get_list_query(self, request: Request) -> Select[Any]:
        return select(Job).where(not_expired()).options(load_only(*_LISTED))  # type: ignore[arg-type]

    def get_detail_query(self, request: Request) -> Select[Any]:
        return select(Job)

    def get_count_query(self, request: Request) -> Select[Any]:
        return select(func.count()).select_from(Job).where(not_expired())

    def get_search_query(self, request: Request, term: str) -> ColumnElement[bool]:
        """By the beginning of the id and of the function, and in the error."""
        if "\x00" in term:
            return false()
        return or_(
            col(Job.id).startswith(term, autoescape=True),
            col(Job.function).startswith(term, autoescape=True),
            col(Job.error).icontains(term, autoescape=True),
        )

    async def listed(self, request: Request, rows: Sequence[Job]) -> None:
        if request.state.action == RequestAction.LIST:
            db = session_of(request)
            request.state.jobs = await JobsNow.of(db)
            request.state.job_functions = await functions_present(db)
            await load_usernames(request, [row.owner_id for row in rows])

    async def count(self, request: Request, q: str | None = None, filters: FilterGroup | None = None) -> int:
        now: JobsNow | None = getattr(request.state, "jobs", None)
        if now is not None and q is None and (filters is None or filters.is_empty()):
            return sum(now.counts.by_status.values())
        return await super().count(request, q, filters)

    async def find_by_pk(self, request: Request, pk: Any) -> Any:
        row = await super().find_by_pk(request, pk)
        if row is not None and request.state.action == RequestAction.DETAIL:
            await load_usernames(request, [row.owner_id])
        return row

    def _pk_in(self, text: str) -> str | None:
        return text if "\x00" not in text else None

    # ---- What is done ----

    async def get_row_actions_for_obj(self, request: Request, obj: Any) -> list[dict[str, Any]]:
        """Offered only when they apply; whoever comes too late is told why it cannot be done any more."""
        applies = {
            "view": True,
            "retry": obj.status is JobStatus.DEFERRED,
            "cancel": not obj.has_ended and not obj.cancel_requested,
            "replay": obj.state in (JobState.DEAD, JobState.CANCELLED),
        }
        return [one for one in await super().get_row_actions_for_obj(request, obj) if applies[one["name"]]]

    @row_action("retry", "Retry now", confirmation="Start this job now instead of later?", submit_btn_text="Retry now")
    async def retry(self, request: Request, pk: str) -> None:
        """Has a job that waits for a later moment start now."""
        job = await self._present(request, pk)
        before = {"status": job.status, "run_after": job.run_after}
        if not await queue.run_now(session_of(request), pk):
            raise ActionFailed("The job does not wait for a later moment any more.")
        await self._done(request, pk, "job.retry", before)
        flash(request, "The job starts as soon as a worker is free.", "success")

    @row_action("cancel", "Cancel", confirmation="Cancel this job?", submit_btn_text="Cancel the job")
    async def cancel(self, request: Request, pk: str) -> None:
        """Cancels a job that waits or runs."""
        job = await self._present(request, pk)
        before = {"status": job.status, "cancel_requested": job.cancel_requested}
        if not await queue.request_cancel(session_of(request), pk):
            raise JobHasEnded
        job = await self._done(request, pk, "job.cancel", before)
        text = "The job is cancelled." if job.has_ended else "The job is stopped within a second or two."
        flash(request, text, "success")

    @row_action(
        "replay", "Replay", confirmation="Do this job again, from its first attempt on?", submit_btn_text="Replay"
    )
    async def replay(self, request: Request, pk: str) -> None:
        """Has a dead or cancelled job done after all."""
        job = await self._present(request, pk)
        before = {"status": job.status, "attempt": job.attempt}
        if not await queue.replay(session_of(request), pk):
            raise JobNotReplayable
        await self._done(request, pk, "job.replay", before)
        flash(request, "The job is done again.", "success")

    @action(
        "replay",
        "Replay",
        confirmation="Do the selected jobs again that are dead or cancelled, from their first attempts on?",
        submit_btn_text="Replay",
    )
    async def replay_selected(self, request: Request, selection: ActionSelection) -> None:
        """Has those of the selected jobs done that are dead or cancelled."""
        rows = await selection.rows()
        replayable = [row for row in rows if row.state in (JobState.DEAD, JobState.CANCELLED)]
        done = 0
        for row in sorted(replayable, key=lambda one: one.id):  # In one order, whoever else does the same.
            before = {"status": row.status, "attempt": row.attempt}
            if await queue.replay(session_of(request), row.id):
                await self._done(request, row.id, "job.replay", before)
                done += 1
        if not done:
            raise JobNotReplayable
        flash(request, f"{done} of {len(rows)} selected jobs are done again.", "success")

    @action(
        "replay_all",
        "Replay all dead letters",
        confirmation=f"Do the dead jobs again, the oldest first and {MOST_REPLAYED:,} at most?",
        submit_btn_text="Replay",
        form=_replay_form,
        allow_empty_selection=True,
        dedicated_button=True,
    )
    async def replay_all(self, request: Request, selection: ActionSelection) -> None:
        """Has dead jobs done after all, of one function or of all."""
        form = await request.form()
        function = str(form.get("function") or "") or None
        replayed = await queue.replay_all(session_of(request), function=function, most=MOST_REPLAYED)
        count = len(replayed)
        if not count:
            raise ActionFailed("No job is dead, or no other than somebody replays at this moment.")
        target = f"dead jobs of {function}" if function else "dead jobs"
        await audit(request, "job.replay_all", target, {"status": JobStatus.DEAD}, {"replayed": count, "ids": replayed})
        more = " Maybe there are more: repeat it." if count == MOST_REPLAYED else ""
        flash(request, f"{count:,} dead jobs are done again.{more}", "success")

    async def _present(self, request: Request, pk: str) -> Job:
        return await crud_jobs.get_present(session_of(request), pk.replace("\x00", "\ufffd"))

    async def _done(self, request: Request, pk: str, what: str, before: dict[str, Any]) -> Job:
        """Writes down what was done, with the same facts as they are now."""
        job = await self._present(request, pk)
        await audit(request, what, self.target(job), before, {name: getattr(job, name) for name in before})
        return job
