"""The documentation pages, which load nothing from the internet."""

from collections.abc import Sequence
from pathlib import Path

import fastapi_standalone_docs
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.params import Depends
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.core.openapi import openapi_at
from app.core.root_path import root_path_of
from app.core.route_inputs import same_for_all_callers

ASSETS = "/docs/assets"
FRESH = {"Cache-Control": "no-cache"}  # the next reload of the app may change them


@same_for_all_callers
class _WholeFiles(StaticFiles):
    """Files without ranges, which a server may ignore: Starlette's errors about them are no problem documents."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def add_docs(app: FastAPI, guard: Sequence[Depends] = ()) -> None:
    """Serves `/docs`, `/redoc` and `/openapi.json`, to whom the guard lets through.

    Args:
        guard: dependencies that refuse everybody else; the scripts and styles themselves hold nothing to guard.
    """
    router = APIRouter(include_in_schema=False, dependencies=list(guard))

    @router.get("/openapi.json")
    async def openapi(request: Request) -> Response:
        return JSONResponse(openapi_at(app, root_path_of(request.scope)), headers=FRESH)

    @router.get("/docs")
    async def swagger_ui(request: Request) -> HTMLResponse:
        root = root_path_of(request.scope)
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}{ASSETS}/swagger/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/fastapi/favicon.png",
        )

    @router.get("/redoc")
    async def redoc(request: Request) -> HTMLResponse:
        root = root_path_of(request.scope)
        return get_redoc_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            redoc_js_url=f"{root}{ASSETS}/redoc/redoc.standalone.js",
            redoc_favicon_url=f"{root}{ASSETS}/fastapi/favicon.png",
            with_google_fonts=False,
        )

    app.include_router(router)
    static = Path(fastapi_standalone_docs.__path__[0]) / "static"
    app.mount(ASSETS, _WholeFiles(directory=static), name="docs-assets")
