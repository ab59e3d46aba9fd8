"""The console's pages of jobs, over HTTP, with real jobs."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.utils import queue
from app.core.utils.queue import Job, JobState
from app.core.worker.options import job
from app.models.user import User
from scripts.embedded import free_port
from tests.admin.conftest import app_with_console
from tests.admin.operator import console_of, post, sign_in, text_of
from tests.admin.people import act, entries
from tests.conftest import second_session
from tests.durable_jobs import Context, Holding, becomes, create_done, enqueued, happens, job_of, until, working
from tests.helper import counted_statements, create_superuser, create_user

pytestmark = pytest.mark.anyio

SCRIPT = "</script><script>fail()</script>"
STATES: dict[str, dict[str, Any]] = {
    "queued": {"state": JobState.QUEUED},
    "deferred": {"state": JobState.QUEUED, "run_after": utc_now() + timedelta(days=1)},
    "in_progress": {"state": JobState.RUNNING, "lease_until": utc_now() + timedelta(hours=1), "worker": "w"},
    "complete": {"state": JobState.SUCCEEDED, "finished_at": utc_now(), "result": {"sent": 3}},
    "dead": {"state": JobState.DEAD, "finished_at": utc_now(), "error": "RuntimeError: no way"},
    "cancelled": {"state": JobState.CANCELLED, "finished_at": utc_now()},
}


async def add(db: AsyncSession, job_id: str, **values: Any) -> None:
    """A job that no worker takes."""
    usual: dict[str, Any] = {"queue": "nobody's", "function": "mail", "sent_at": utc_now()}
    db.add(Job(id=job_id, **usual | values))
    await db.commit()


async def add_one_of_each(db: AsyncSession) -> None:
    for name, values in STATES.items():
        await add(db, name, **values)


async def listed(console: httpx2.AsyncClient, **params: str) -> list[str]:
    """The ids that a list shows, in its order."""
    page = await console.get("job/list", params=params)
    assert page.status_code == 200, page.text
    return re.findall(r'<tr data-sa-pk="([^"]*)"', page.text)


async def offered(console: httpx2.AsyncClient, job_id: str) -> set[str]:
    """The actions that the page of a job offers."""
    page = await console.get("job/detail", params={"pk": job_id})
    assert page.status_code == 200
    return set(re.findall(r'data-sa-name="(\w+)"', page.text)) - {"view"}


async def act_on_all(console: httpx2.AsyncClient, name: str, *pks: str, **values: str) -> httpx2.Response:
    return await post(console, f"_api/job/action?{urlencode({'name': name, 'pks': pks}, doseq=True)}", values)


# ---- The list ----


async def test_jobs_are_listed_with_all_that_is_known_the_newest_first(
    operator: httpx2.AsyncClient, db: AsyncSession
) -> None:
    owner = await create_user(db, username="owner")
    began = utc_now().replace(microsecond=0) - timedelta(minutes=5)
    facts: dict[str, Any] = {"created_at": began, "started_at": began, "worker": "host:7:abc", "attempt": 3}
    await add(db, "first", owner_id=owner.id, **facts, **STATES["dead"])
    await add(db, "second", progress={"done": 3, "total": 4, "message": "nearly"}, **STATES["in_progress"])
    assert await listed(operator) == ["second", "first"]

    page = await operator.get("job/list")
    text = text_of(page)
    for part in (
        "mail",
        "dead",
        "nobody's",
        "owner",
        f"{began:%Y-%m-%d %H:%M:%S} UTC",
        "host:7:abc",
        "3 of 4",
        "nearly",
    ):
        assert part in text, part
    assert f"/admin/user/detail?pk={owner.id}" in page.text
    assert 'value="0.75"' in page.text


async def test_counts_lead_to_the_jobs_they_count(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await add_one_of_each(db)
    await add(db, "dead too", **STATES["dead"])
    page = await operator.get("job/list")
    found = re.findall(
        r'href="[^"]*filter=status__eq%3D(\w+)".*?<span class="d-block h2 mb-0">(\d+)', page.text, re.DOTALL
    )
    assert dict(found) == {
        "deferred": "1", "queued": "1", "in_progress": "1", "complete": "1", "dead": "2", "cancelled": "1",
    }  # fmt: skip
    for status in STATES:
        expected = {status, "dead too"} if status == "dead" else {status}
        assert set(await listed(operator, filter=f"status__eq={status}")) == expected
    assert 'id="jobs-now" data-live=' in page.text
    assert {"Jobs ended", "Jobs took"} <= set(re.findall(r'plot-title">([\w ]+?) <', page.text))


async def test_what_has_expired_is_not_listed(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await add(db, "expired", expires_at=utc_now() - timedelta(seconds=1), **STATES["complete"])
    await add(db, "kept", expires_at=utc_now() + timedelta(hours=1), **STATES["complete"])
    assert await listed(operator) == ["kept"]
    assert "1 to 1 of 1 entries" in text_of(await operator.get("job/list"))


async def test_jobs_are_filtered(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    owner = await create_user(db, username="owner")
    await add(db, "old", created_at=utc_now() - timedelta(days=2), function="send_mail", worker="host:1")
    await add(db, "own", owner_id=owner.id, queue="other", function="send_100%")
    yesterday = (utc_now() - timedelta(days=1)).isoformat(timespec="seconds").removesuffix("+00:00")
    for condition, found in {
        "function__eq=send_mail": ["old"],
        "function__startswith=send_": ["own", "old"],
        "function__startswith=send_100%": ["own"],
        "function__startswith=%": [],
        "queue__eq=other": ["own"],
        f"owner_id__eq={owner.id}": ["own"],
        "owner_id__named=owner": ["own"],
        "owner_id__named=nobody": [],
        f"created_at__from={yesterday}": ["own"],
        f"created_at__until={yesterday}": ["old"],
        "worker__startswith=host": ["old"],
        f"status__eq=queued AND owner_id__eq={owner.id}": ["own"],
        "status__eq=dead,queued": ["own", "old"],
    }.items():
        assert await listed(operator, filter=condition) == found, condition
    assert '"send_100%"' in (await operator.get("job/list")).text.replace("\\u0025", "%")  # offered as a choice


@pytest.mark.parametrize(
    "condition",
    [
        "status__eq=gone", "owner_id__eq=x", "owner_id__eq=99999999999", "created_at__from=x", "error__contains=x",
        "args__eq=x", "function__eq=a\x00b", "id__eq=x",
    ],
)  # fmt: skip
async def test_a_filter_that_cannot_be_is_said_to_be_wrong(operator: httpx2.AsyncClient, condition: str) -> None:
    assert (await operator.get("job/list", params={"filter": condition})).status_code == 400


async def test_jobs_are_searched_by_every_character_as_it_is(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await add(db, "abc_1", function="mail")
    await add(db, "abcd1", function="other", **{**STATES["dead"], "error": "ValueError: 100% of a\\b"})
    for term, found in {
        "abc": ["abcd1", "abc_1"],
        "abc_": ["abc_1"],
        "bc": [],
        "oth": ["abcd1"],
        "ther": [],
        "VALUEerror": ["abcd1"],
        "100%": ["abcd1"],
        "%": ["abcd1"],
        "a\\b": ["abcd1"],
        "\x00": [],
    }.items():
        assert await listed(operator, q=term) == found, term


async def test_the_list_costs_few_statements(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    for n in range(30):
        user = await create_user(db, username=f"owner{n}")
        await add(db, f"job{n}", owner_id=user.id)
    with counted_statements() as statements:
        assert len(await listed(operator)) == 25
    selects = [one for one in statements if not one.startswith("SET")]
    assert len(selects) <= 8, selects
    assert not [one for one in selects if "keywords" in one or "job.error," in one]


# ---- One job ----


async def test_a_job_is_shown_in_full(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    error = "Traceback\n" + "a line\n" * 3000 + "RuntimeError: the end"
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    facts: dict[str, Any] = {"idempotency_key": "once", "traceparent": trace, "attempt": 5, "worker": "host:7:abc"}
    await add(db, "it", args=["Ä", {"a": [1]}], keywords={"k": None}, **facts, **STATES["dead"] | {"error": error})
    page = await operator.get("job/detail", params={"pk": "it"})
    text = text_of(page)
    assert page.status_code == 200
    assert "RuntimeError: the end" in text
    assert page.text.count("a line") == 3000
    for part in ('[ "Ä", { "a": [ 1 ] } ]', '{ "k": null }', "Attempts begun 5", "once", trace, "host:7:abc", "dead"):
        assert part in text, part
    assert not re.search(r'id="job-now"[^>]*data-live', page.text)

    await add(db, "done", **STATES["complete"])
    assert '{ "sent": 3 }' in text_of(await operator.get("job/detail", params={"pk": "done"}))
    for unknown in ("none", "a\x00b", ""):
        assert (await operator.get("job/detail", params={"pk": unknown})).status_code == 404


async def test_progress_moves_while_a_job_runs(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    async def count_up(ctx: Context) -> None:
        await queue.progress(ctx, 1, 4, f"first {SCRIPT}")
        first.begun.set()
        await first.may_end.wait()
        while not second.begun.is_set():  # A report can come too soon after the one before to be written.
            await queue.progress(ctx, 3, 4, "third")
            await until_soon()
        await second.may_end.wait()

    async def until_soon() -> None:
        seen = (await job_of(job_id)).progress
        if seen is not None and seen["done"] == 3:
            second.begun.set()

    first, second = Holding(), Holding()
    async with working(job(count_up, name="count_up")):
        job_id = await enqueued("count_up")
        await happens(first.begun)
        page = await operator.get("job/detail", params={"pk": job_id})
        assert re.search(r'<progress[^>]*max="1" value="0.25"', page.text)
        assert "1 of 4" in text_of(page)
        assert "first </script>" in text_of(page)
        assert SCRIPT not in page.text
        assert re.search(r'id="job-now" data-live="1"', page.text)
        first.may_end.set()
        await happens(second.begun)
        page = await operator.get("job/detail", params={"pk": job_id}, headers={"X-Console-Live": "1"})
        assert re.search(r'<progress[^>]*max="1" value="0.75"', page.text)
        assert "third" in page.text
        second.may_end.set()
        await becomes(job_id, JobState.SUCCEEDED)
    assert "complete" in text_of(await operator.get("job/detail", params={"pk": job_id}))


async def test_script_is_text_wherever_it_stands(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    evil = f"\"'\\{SCRIPT}<img src=x onerror=fail()>\\"
    progress: dict[str, Any] = {"done": 1, "total": None, "message": evil}
    facts: dict[str, Any] = {"error": evil, "worker": evil, "idempotency_key": evil, "traceparent": SCRIPT}
    values = STATES["in_progress"] | facts | {"progress": progress, "queue": evil, "function": evil}
    await add(db, evil, args=[evil], keywords={evil: evil}, **values)
    await add(db, "done", **STATES["complete"] | {"result": evil})
    paths = [("job/list", {}), ("job/list", {"q": evil}), ("job/detail", {"pk": evil}), ("job/detail", {"pk": "done"})]
    paths += [("job/list", {"filter": f'function__eq="{SCRIPT}"'}), ("workers", {})]
    for path, params in paths:
        page = await operator.get(path, params=params)
        assert page.status_code == 200, path
        assert "fail()" in page.text or params == {"q": evil}
        for markup in ("<script>fail", "<img src=x"):
            assert markup not in page.text, (path, params)
    page = await operator.get("job/detail", params={"pk": evil})
    assert r"\u003c/script\u003e\u003cscript\u003efail()" in page.text  # the id, in the page's script
    assert (await act(operator, "job", "cancel", evil)).status_code == 200
    await db.rollback()
    assert (await job_of(evil)).cancel_requested


@pytest.mark.parametrize(
    "said", [{"done": "x"}, {"done": 1, "total": 0}, {"done": 5, "total": 2}, {}, {"done": -1, "total": 1}]
)
async def test_progress_of_any_form_is_shown(operator: httpx2.AsyncClient, db: AsyncSession, said: Any) -> None:
    await add(db, "it", progress=said, **STATES["in_progress"])
    for path in ("job/list", "job/detail?pk=it", "workers"):
        assert (await operator.get(path)).status_code == 200


# ---- What is done ----


async def test_actions_are_offered_when_they_apply(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await add_one_of_each(db)
    await add(db, "stopping", cancel_requested=True, **STATES["in_progress"])
    assert {name: await offered(operator, name) for name in (*STATES, "stopping")} == {
        "queued": {"cancel"},
        "deferred": {"retry", "cancel"},
        "in_progress": {"cancel"},
        "complete": set(),
        "dead": {"replay"},
        "cancelled": {"replay"},
        "stopping": set(),
    }


async def test_a_job_is_retried_at_once(operator: httpx2.AsyncClient, db: AsyncSession, superuser: User) -> None:
    async def mail(ctx: Context) -> str:
        return "sent"

    later = utc_now() + timedelta(days=1)
    job_id = await enqueued("mail", _defer_until=later)
    answer = await act(operator, "job", "retry", job_id)
    assert (answer.status_code, answer.json()["redirect"]) == (200, "/admin/job/list")
    async with working(job(mail, name="mail")):
        assert (await becomes(job_id, JobState.SUCCEEDED)).result == "sent"
    ((actor, action, target, before, after),) = await entries(db)
    assert (actor, action, target) == (superuser.username, "job.retry", f"job {job_id}")
    assert (before["status"], before["run_after"][:10]) == ("deferred", f"{later:%Y-%m-%d}")
    assert after["status"] == "queued"

    again = await act(operator, "job", "retry", job_id)
    assert (again.status_code, again.json()["msg"]) == (400, "The job does not wait for a later moment any more.")
    assert len(await entries(db)) == 1


async def test_a_job_that_waits_is_cancelled(operator: httpx2.AsyncClient, db: AsyncSession, superuser: User) -> None:
    await add_one_of_each(db)
    assert (await act(operator, "job", "cancel", "queued")).status_code == 200
    assert (await job_of("queued")).state == JobState.CANCELLED
    before = {"status": "queued", "cancel_requested": False}
    after = {"status": "cancelled", "cancel_requested": True}
    assert await entries(db) == [(superuser.username, "job.cancel", "job queued", before, after)]
    for name in ("complete", "dead", "cancelled"):
        answer = await act(operator, "job", "cancel", name)
        assert (answer.status_code, answer.json()["msg"]) == (400, "The task has ended already.")
    assert len(await entries(db)) == 1


async def test_a_job_that_runs_is_cancelled(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_done()
    holding = Holding()
    async with working(holding.function):
        job_id = await enqueued("hold")
        await happens(holding.begun)
        assert (await act(operator, "job", "cancel", job_id)).status_code == 200
        await becomes(job_id, JobState.CANCELLED)


async def test_a_dead_letter_is_replayed(operator: httpx2.AsyncClient, db: AsyncSession, superuser: User) -> None:
    async def fail(ctx: Context) -> str:
        if not mended:
            raise RuntimeError("not yet")
        return "mended"

    mended = False
    async with working(job(fail, name="fail", max_tries=2, first_retry=0)):
        job_id = await enqueued("fail")
        await becomes(job_id, JobState.DEAD)
        assert "RuntimeError" in text_of(await operator.get("job/detail", params={"pk": job_id}))
        mended = True
        assert (await act(operator, "job", "replay", job_id)).status_code == 200
        await becomes(job_id, JobState.SUCCEEDED)
    before, after = {"status": "dead", "attempt": 2}, {"status": "queued", "attempt": 0}
    assert await entries(db) == [(superuser.username, "job.replay", f"job {job_id}", before, after)]
    answer = await act(operator, "job", "replay", job_id)
    assert (answer.status_code, answer.json()["msg"]) == (400, "Only a task that is dead or cancelled can be replayed.")


async def test_the_selected_are_replayed_that_can_be(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await add_one_of_each(db)
    assert (await act_on_all(operator, "replay", *STATES)).status_code == 200
    assert {(action, target) for _, action, target, _, _ in await entries(db)} == {
        ("job.replay", "job dead"),
        ("job.replay", "job cancelled"),
    }
    states = {name: (await job_of(name)).state for name in STATES}
    assert states["dead"] == states["cancelled"] == JobState.QUEUED
    assert (states["complete"], states["in_progress"]) == (JobState.SUCCEEDED, JobState.RUNNING)
    assert "2 of 6 selected jobs are done again." in text_of(await operator.get("job/list"))
    assert (await act_on_all(operator, "replay", "complete")).status_code == 400
    assert (await act_on_all(operator, "replay", "a\x00b", "none")).status_code == 400


async def test_all_that_a_filter_shows_are_replayed(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await add_one_of_each(db)
    query = {"name": "replay", "all": "1", "_list_query": "?filter=status__eq%3Ddead"}
    assert (await post(operator, f"_api/job/action?{urlencode(query)}")).status_code == 200
    assert [target for _, _, target, _, _ in await entries(db)] == ["job dead"]


async def test_all_dead_letters_are_replayed_of_one_function_or_of_all(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    for n in range(3):
        await add(db, f"mail {n}", **STATES["dead"])
        await add(db, f"other {n}", function="other", **STATES["dead"])
    assert "&lt;option&gt;other&lt;/option&gt;" in (await operator.get("job/list")).text  # in the dialog's form
    assert (await act_on_all(operator, "replay_all", function="other")).status_code == 200
    assert "3 dead jobs are done again." in text_of(await operator.get("job/list"))
    assert {(await job_of(f"other {n}")).state for n in range(3)} == {JobState.QUEUED}
    assert {(await job_of(f"mail {n}")).state for n in range(3)} == {JobState.DEAD}
    assert (await act_on_all(operator, "replay_all")).status_code == 200
    assert {(await job_of(f"mail {n}")).state for n in range(3)} == {JobState.QUEUED}
    assert [
        (who, what, target, before, after["replayed"], sorted(after["ids"]))
        for who, what, target, before, after in await entries(db)
    ] == [
        (superuser.username, "job.replay_all", target, {"status": "dead"}, 3, [f"{name} {n}" for n in range(3)])
        for target, name in (("dead jobs of other", "other"), ("dead jobs", "mail"))
    ]
    for function in ("", "other", "none", "a\x00b"):
        assert (await act_on_all(operator, "replay_all", function=function)).status_code == 400
    assert len(await entries(db)) == 2


async def test_actions_on_what_is_not_there_change_nothing(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    for name in ("retry", "cancel", "replay", "edit", "delete", "none"):
        for pk in ("none", "a\x00b"):
            assert (await act(operator, "job", name, pk)).status_code == 400, (name, pk)
    for path in ("job/create", "job/edit?pk=dead"):
        assert (await operator.get(path)).status_code in (403, 404)
        assert (await post(operator, path, {"id": "x"})).status_code in (403, 404)
    assert await entries(db) == []


# ---- Valkey away ----


async def test_jobs_are_seen_and_changed_while_valkey_is_away(settings: Settings) -> None:
    away = settings.model_copy(update={"REDIS_QUEUE_PORT": free_port()})
    app = app_with_console(away)
    async with app.router.lifespan_context(app), console_of(app) as console:
        async with second_session() as db:
            operator = await create_superuser(db)
            await add_one_of_each(db)
        assert (await sign_in(console, operator)).status_code == 303
        assert set(await listed(console)) == set(STATES)
        assert (await act(console, "job", "replay", "dead")).status_code == 200

        async def is_queued() -> bool:
            return (await job_of("dead")).state == JobState.QUEUED

        await until(is_queued)
