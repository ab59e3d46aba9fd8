"""An ASGI app that tells what arrives, and its process: `/` the headers and peer, `/wait?seconds=1` after that time."""

import asyncio
import json
import os
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/wait":
        await asyncio.sleep(float(parse_qs(scope["query_string"].decode())["seconds"][0]))
    told: dict[str, Any] = {
        "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
        "client": scope["client"],
        "scheme": scope["scheme"],
        "pid": os.getpid(),
    }
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
