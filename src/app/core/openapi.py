"""The OpenAPI document: what FastAPI writes, and the truth about our errors."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from fastapi import FastAPI

from app.core.db.data_errors import ConstraintConflict
from app.core.exceptions.http_exceptions import Problem
from app.core.exceptions.problem_response import MEDIA_TYPE
from app.core.schemas import ProblemDetails
from app.core.utils.rate_limit import EVERY_PATH, limited_paths

# `openapi_extra=` of a route that also answers those who are not signed in.
SIGN_IN_OPTIONAL: dict[str, Any] = {"security": [{}]}

_PROBLEM = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}}
# Whatever a route does, these can be the answer: a broken or oversized request, or a service that is away.
_ALWAYS = {
    "400": "The request cannot be read.",
    "413": "The request body is too large.",
    "422": "The request is not valid.",
    "500": "Something went wrong here.",
    "503": "A service this request needs is not available.",
    "504": "A statement of this request took longer in the database than it may.",
}
# What a route that changes something can also answer: see `app.core.db.data_errors`.
_CHANGES = {"409": ConstraintConflict.text}
_METHODS_THAT_READ = {"get", "head", "options", "trace"}


def problems(*errors: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The errors a route can give, for its `responses=`."""
    texts: dict[int | str, list[str]] = {}
    for error in errors:
        texts.setdefault(error.status, []).append(error.text)
    return {status: {"description": " / ".join(found), **_PROBLEM} for status, found in texts.items()}


def add_openapi(app: FastAPI) -> None:
    """Lets the app's document describe its errors as problem details, and the paths a rate limit can name."""
    describe = app.openapi

    complete: dict[str, Any] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal complete
        document = describe()  # Another one once there are other routes.
        if document is not complete:
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas["ProblemDetails"] = ProblemDetails.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for method, operation in _operations(document):
                expected = _ALWAYS if method in _METHODS_THAT_READ else _ALWAYS | _CHANGES
                for status, description in expected.items():
                    if MEDIA_TYPE not in operation["responses"].get(status, {}).get("content", {}):
                        operation["responses"][status] = {"description": description, **_PROBLEM}
            _name_the_paths(schemas, [*limited_paths(app), EVERY_PATH])
            for flow in _password_flows(document):
                flow["tokenUrl"] = _path_ending_with(document, flow["tokenUrl"])
            complete = document
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def openapi_at(app: FastAPI, root_path: str) -> dict[str, Any]:
    """The app's document as it is read under a root path: its server and its sign-in are there."""
    document: dict[str, Any] = app.openapi()
    if not root_path:
        return document
    servers = document.get("servers", [])
    if app.root_path_in_servers and root_path not in [server.get("url") for server in servers]:
        servers = [{"url": root_path}, *servers]
    document = {**document, "components": deepcopy(document["components"])}
    for flow in _password_flows(document):
        if flow["tokenUrl"].startswith("/"):
            flow["tokenUrl"] = root_path + flow["tokenUrl"]
    return {**document, "servers": servers} if servers else document


def _password_flows(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    schemes = document.get("components", {}).get("securitySchemes", {}).values()
    return [scheme["flows"]["password"] for scheme in schemes if "password" in scheme.get("flows", {})]


def _path_ending_with(document: dict[str, Any], token_url: str) -> str:
    """The path of the operation that a relative address, such as `login`, means. What is absolute stays as it is."""
    if token_url.startswith("/") or "://" in token_url:
        return token_url
    paths = (path for path, operations in document["paths"].items() if "post" in operations)
    return next((path for path in paths if path.endswith(f"/{token_url.removeprefix('./')}")), token_url)


def _operations(document: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    for path in document.get("paths", {}).values():
        yield from path.items()


def _name_the_paths(schemas: dict[str, Any], paths: list[str]) -> None:
    for name in ("RateLimitCreate", "RateLimitUpdate"):
        if name in schemas:
            described = schemas[name]["properties"]["path"].get("description", "")
            schemas[name]["properties"]["path"] = {
                "type": "string",
                "title": "Path",
                "description": described,
                "enum": paths,
            }
