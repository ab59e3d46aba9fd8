"""The routes of the console, and its pages as links lead to them."""

import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from fastapi import FastAPI
from starlette.routing import Mount, Route

UNSAFE: Final = ("POST", "PUT", "PATCH", "DELETE")
# What stands for a part of an address.
PARTS: Final = {"key": "tier", "storage": "local", "path": "some/file.txt"}
_LINK = re.compile(r'<a\b[^>]*?\shref="([^"]*)"')


def mounted(app: FastAPI) -> Mount:
    """Where the console's own app is mounted."""
    [mount] = [route for route in app.router.routes if isinstance(route, Mount) and route.name == "admin"]
    return mount


def routes_of(app: FastAPI) -> list[Route]:
    """All routes of the console, the library's included; the folder of static files is none."""
    routes = [route for route in mounted(app).routes if not (isinstance(route, Mount) and route.name == "static")]
    assert all(isinstance(route, Route) for route in routes), "tests and the gate know nothing else"
    return [route for route in routes if isinstance(route, Route)]


def addresses_of(app: FastAPI) -> dict[str, frozenset[str]]:
    """An address for every route, below `/admin`, with its methods."""
    found: dict[str, frozenset[str]] = {}
    for route in routes_of(app):
        address = re.sub(r"{(\w+)(?::\w+)?}", lambda part: PARTS.get(part[1], "1"), route.path).removeprefix("/")
        found[address] = found.get(address, frozenset()) | frozenset(route.methods or ())
    return found


def keys_of(app: FastAPI) -> list[str]:
    """The names of the views that are lists of rows."""
    endpoint: Any = next(route.endpoint for route in routes_of(app) if route.name == "list")
    return [view.key for view in endpoint.__self__._model_views]


async def crawl(console: httpx2.AsyncClient, of_each: int = 2) -> AsyncIterator[httpx2.Response]:
    """Every page that links of the console lead to, from the front page on; of pages of one kind only some."""
    kinds: dict[object, int] = {}
    waiting, known = ["/admin/"], {"/admin/"}
    while waiting:
        answer = await console.get(waiting.pop(0).removeprefix("/admin/"))
        yield answer
        for link in map(unescape, _LINK.findall(answer.text)):
            parts = urlsplit(str(answer.url.join(link)))
            query = {name: value for name, value in parse_qs(parts.query).items() if name != "_origin"}
            address = f"{parts.path}?{urlencode(query, doseq=True)}"
            kind = (parts.path, *sorted(query))  # Which row it is, or which order, makes no other kind.
            if not parts.path.startswith("/admin/") or "/static/" in parts.path or address in known:
                continue
            known.add(address)
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= of_each:
                waiting.append(address)
