"""The options of FastAPI that `create_application` sets itself."""

from collections.abc import Mapping
from typing import Any, Final

# Ours are served by `add_docs`; a redirect to the path with or without a slash goes where the Host header says.
FIXED_OPTIONS: Final = {"openapi_url": None, "docs_url": None, "redoc_url": None, "redirect_slashes": False}

_DOCS = (
    "The documentation is served at /docs, /redoc and /openapi.json: to everyone in `local`, and in `staging` to those "
    "whom docs_guard lets through."
)
_INSTEAD: Final = {
    "openapi_url": f"{_DOCS} Leave the option out, and add a route that returns app.openapi() for another address.",
    "docs_url": f"{_DOCS} Leave the option out, and add a route with get_swagger_ui_html() for another address.",
    "redoc_url": f"{_DOCS} Leave the option out, and add a route with get_redoc_html() for another address.",
    "redirect_slashes": "The redirect would go to the host that the caller names. Leave the option out, and declare a "
    "route for each path that is to be answered.",
    "debug": "An answer with a traceback shows secrets. Leave the option out: the log has the traceback under the "
    "answer's request id.",
}


def refuse_options(given: Mapping[str, Any]) -> None:
    """Checks what the caller of `create_application` passes on to FastAPI.

    Raises: ValueError for an option that cannot be had, with what to do instead.
    """
    for name, remedy in _INSTEAD.items():
        if name in given and given[name] is not FIXED_OPTIONS.get(name, False):
            raise ValueError(f"create_application({name}=...) is not supported. {remedy}")
