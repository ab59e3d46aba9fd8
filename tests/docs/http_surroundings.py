"""What Python about requests and uploads in the documents stands in (see surroundings.py)."""

from fastapi import APIRouter, Request

from app.core.config import AppSettings
from app.core.setup import create_application
from tests.conftest import client_of
from tests.docs.surroundings import Code


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
