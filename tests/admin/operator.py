"""An operator without a browser: signs in through the form, and sends forms as a page would."""

import re
from collections.abc import Mapping
from html import unescape
from typing import Any

import httpx2
from fastapi import FastAPI

from app.models.user import User
from tests.helper import PASSWORD

ORIGIN = "http://test"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
_TOKEN = re.compile(r'<meta name="csrf-token" content="([A-Za-z0-9_-]{43})">')


def console_of(app: FastAPI, origin: str = ORIGIN, **cookies: str) -> httpx2.AsyncClient:
    """A client of an app's console, with `/admin` as its base. It keeps cookies and follows no redirect.

    Args:
        origin: with `https://`, for what goes over TLS only.
        cookies: it has these already.
    """
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url=f"{origin}/admin/", cookies=cookies)


async def sign_in(console: httpx2.AsyncClient, user: User | str, password: str = PASSWORD) -> httpx2.Response:
    """Signs in through the form, as a browser does. The answer is a 303 when that has opened the console."""
    username = user if isinstance(user, str) else user.username
    return await post(console, "login", {"username": username, "password": password})


async def token_of(console: httpx2.AsyncClient, page: str = "login") -> str:
    """The CSRF token that a page has for this client; the form for signing in, or where it leads, has one always."""
    answer = await console.get(page)
    if answer.status_code == 303:  # Signed in already.
        answer = await console.get("")
    return token_in(answer)


def token_in(answer: httpx2.Response) -> str:
    """The CSRF token that stands in a page. Raises: AssertionError when there is none."""
    found = _TOKEN.search(answer.text)
    assert found is not None, f"{answer.status_code} of {answer.url.path} has no token"
    return found[1]


async def post(
    console: httpx2.AsyncClient, path: str, values: Mapping[str, Any] | None = None, **kwargs: Any
) -> httpx2.Response:
    """Sends a form with this client's token from the console's own origin.

    Args:
        path: below `/admin`, or with it.
        values: the form's fields.
        kwargs: what httpx2 takes besides, such as `files`; `headers` are added.
    """
    data = {"csrftoken": await token_of(console), **(values or {})}
    headers = SAME_ORIGIN | dict(kwargs.pop("headers", {}))
    return await console.post(path.removeprefix("/admin/"), data=data, headers=headers, **kwargs)


def text_of(answer: httpx2.Response) -> str:
    """What a person reads of a page: without its markup, scripts and styles, with single spaces."""
    body = re.sub(r"(?s)<(script|style|template)\b.*?</\1>|<[^>]+>", " ", answer.text)
    return " ".join(unescape(body).split())
