"""What Python about requests and uploads in the documents stands in (see surroundings.py)."""

from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, Request, Response

from app.core.config import AppSettings
from app.core.db.database import transaction
from app.core.setup import create_application
from tests.conftest import client_of
from tests.docs.surroundings import Code
from tests.helper import create_user, signed_in
from tests.images import jpeg, png


async def request_sizes(code: Code) -> None:
    """A route that takes more than the application's limit, and a router that takes less."""
    names = await code.run(APIRouter=APIRouter, Request=Request)
    router: APIRouter = names["router"]
    webhooks: APIRouter = names["webhooks"]

    @webhooks.post("/hook")
    async def hook(request: Request) -> int:
        return len(await request.body())

    router.include_router(webhooks)
    settings = AppSettings()
    async with client_of(create_application(router, settings)) as client:
        larger = b"x" * (settings.MAX_BODY_BYTES + 1)
        assert (await client.post("http://test/videos", content=larger)).json() == len(larger)
        for size, status in ((64_000, 200), (64_001, 413)):
            assert (await client.post("http://test/hook", content=b"x" * size)).status_code == status


async def uploads(code: Code) -> None:
    """Attachments of posts: uploaded, read, replaced."""
    post, router = SimpleNamespace(attachment=None), APIRouter()

    async def get_post(number: int, db: Any) -> SimpleNamespace:
        return post

    await code.run(router=router, Request=Request, Response=Response, get_post=get_post)
    async with code.started(router) as client:
        async with transaction() as db:
            headers = signed_in(await create_user(db), code.settings)
        path = "post/7/attachment"
        assert (await client.put(path, content=png())).status_code == 401
        for sent, kind, shown in (
            (png(), "image/png", "inline"),
            (b"%PDF-1.7", "application/pdf", "attachment"),
            (jpeg(metadata=b"x" * 60_000) + b"x" * 2_000_000, "image/jpeg", "inline"),
        ):
            assert (await client.put(path, content=sent, headers=headers)).json() == len(sent)
            answer = await client.get(path, headers=headers)
            assert (answer.content, answer.headers["Content-Type"]) == (sent, kind)
            assert answer.headers["Content-Disposition"].startswith(shown)
            assert answer.headers["Cache-Control"] == "private, no-store"
        assert (await client.put(path, content=b"MZ", headers=headers)).status_code == 415
        assert (await client.get(path)).status_code == 401
