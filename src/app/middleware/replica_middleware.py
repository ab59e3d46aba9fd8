"""Has it noted who has written, before they are told that it is done."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.connection import application_of
from app.core.db.commits import watching_writes
from app.core.db.replica import Replica
from app.core.logger import USER_ID

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class ReplicaMiddleware:
    """For apps whose reads go to a replica (`app.state.replica`). Costs those that only read nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replica: Replica | None = application_of(scope).state.replica if scope["type"] == "http" else None
        if replica is None or scope["method"] in SAFE:
            await self.app(scope, receive, send)
            return

        async def send_when_noted(message: Message) -> None:
            if message["type"] == "http.response.start" and writes.made:
                await replica.note(subjects_of(HTTPConnection(scope)))
            await send(message)

        with watching_writes() as writes:
            await self.app(scope, receive, send_when_noted)


def subjects_of(request: HTTPConnection) -> list[str]:
    """What the caller is called: by their address, and as the user who has signed in, as far as that is known by now.

    By both: who signs in has written as the one, and reads as the other.
    """
    user_id = request.scope.get("state", {}).get(USER_ID)
    subjects = [f"address:{request.client.host}"] if request.client is not None else []
    return subjects if user_id is None else [*subjects, f"user:{user_id}"]
