"""What every answer of the console has: its headers, its clothes, and nothing that was not meant for it."""

import re
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from jinja2 import DictLoader, Environment
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.policy import StrictPolicy, security_headers
from app.core.config import Settings
from app.core.db import database
from app.crud.crud_tier import crud_tiers
from app.models.user import User
from scripts.embedded import free_port
from tests.admin.operator import SAME_ORIGIN, console_of, post, sign_in, text_of, token_of
from tests.admin.routes import crawl, keys_of
from tests.admin.world import HOSTILE, create_world
from tests.canaries import secrets_in
from tests.helper import all_rows

pytestmark = pytest.mark.anyio

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def directives_of(answer: httpx2.Response) -> dict[str, str]:
    """The answer's policy, which is one."""
    [policy] = answer.headers.get_list("Content-Security-Policy")
    return dict(part.strip().partition(" ")[::2] for part in policy.split(";"))


def assert_strict(answer: httpx2.Response) -> None:
    """The answer has all headers, and its policy lets nothing in that the page did not bring."""
    policy = directives_of(answer)
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["script-src-attr"] == "'none'"
    assert policy["form-action"] == "'self'"
    [nonce] = re.findall(r"^'nonce-([A-Za-z0-9_-]{16,})'$", policy["script-src"])
    for value in policy.values():
        assert "unsafe" not in value
        assert "*" not in value
        assert "http" not in value
    for name, expected in HEADERS.items():
        assert answer.headers.get_list(name) == [expected], name
    if "/static/" not in answer.url.path:
        assert answer.headers.get_list("Cache-Control") == ["no-store"]
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        inline = re.findall(r"<(?:script|style)\b([^>]*)>", answer.text)
        assert all(f'nonce="{nonce}"' in attributes for attributes in inline), inline
        assert not re.search(r"<[a-z][^<>]*\s(?:on[a-z]+|style)=", answer.text), answer.url


def assert_in_the_console_s_clothes(answer: httpx2.Response, status: int) -> None:
    """A page of the console that says what is wrong, and not how it came to that."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "tabler" in answer.text
    assert str(status) in text_of(answer)
    assert not re.search(r"Traceback|SELECT|INSERT|sqlalchemy|asyncpg|/src/app/|\.py\b", answer.text)
    assert_strict(answer)


# ---- Headers ----


async def test_every_page_is_strict_and_keeps_text_and_secrets_to_itself(
    operator: httpx2.AsyncClient, db: AsyncSession, capsys: pytest.CaptureFixture[str]
) -> None:
    """One walk for all of it."""
    await create_world(db)
    held = operator.cookies["slipway_console"].split(".")[1]
    token = await token_of(operator)
    shown = 0
    async for answer in crawl(operator):
        assert answer.status_code == 200, answer.url
        assert_strict(answer)
        loaded = re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*\s(?:src|href)="([^"]*)"', answer.text)
        assert all(address.startswith(("/admin/static/", "data:")) for address in loaded), answer.url
        assert not secrets_in(answer.text), answer.url
        assert held not in answer.text, answer.url
        assert_harmless(answer)
        shown += HOSTILE in text_of(answer)
    assert shown >= 4, "it was there, as text"
    logged = "".join(capsys.readouterr())
    assert not secrets_in(logged)
    assert held not in logged
    assert token not in logged


def assert_harmless(answer: httpx2.Response) -> None:
    """Of what stands in the world's texts nothing is markup, an address or a template."""
    assert "<script>fail()" not in answer.text, answer.url
    assert "<img src=x" not in answer.text, answer.url
    assert not re.search(r'(?:href|src)="\s*javascript:', answer.text), answer.url
    assert not re.search(r"fail\(\)\S{0,20}49", answer.text), answer.url


async def test_whoever_asks_gets_the_headers(app: FastAPI, superuser: User) -> None:
    async with console_of(app) as stranger:
        for path in ("login", "", "user/list", "nothing", "static/console/console.js", "static/nothing"):
            assert_strict(await stranger.get(path))
        assert_strict(await stranger.head("login"))
        assert_strict(await stranger.post("tier/create"))
        assert_strict(await sign_in(stranger, "operator", "a wrong password"))
        assert_strict(await sign_in(stranger, "operator"))


async def test_each_answer_has_a_nonce_of_its_own(operator: httpx2.AsyncClient) -> None:
    assert len({directives_of(await operator.get(""))["script-src"] for _ in range(10)}) == 10


async def test_the_nonce_is_in_no_address_and_no_text(operator: httpx2.AsyncClient) -> None:
    answer = await operator.get("user/list")
    nonce = directives_of(answer)["script-src"].removeprefix("'nonce-").removesuffix("'")
    assert answer.text.count(nonce) == answer.text.count(f'nonce="{nonce}"') > 0


def test_the_policy_goes_with_its_nonce() -> None:
    [(name, policy), *_] = security_headers("a-nonce")
    assert name == b"content-security-policy"
    assert policy.count(b"'nonce-a-nonce'") == 2


# ---- Templates fit the policy; what is put into them is not touched ----


def rendered(source: str, **values: Any) -> str:
    """A template, rendered with the extension and a nonce."""
    environment = Environment(loader=DictLoader({"page": source}), autoescape=True, extensions=[StrictPolicy])

    class Request:
        class state:  # noqa: N801 -- it is called that
            csp_nonce = "n"

    return environment.get_template("page").render(request=Request, **values)


def test_scripts_and_styles_of_templates_get_the_nonce() -> None:
    assert rendered("<script>a</script>") == '<script nonce="n">a</script>'
    assert rendered('<script src="x"></script><style>b</style>') == (
        '<script nonce="n" src="x"></script><style nonce="n">b</style>'
    )


def test_handlers_and_styles_in_attributes_become_data() -> None:
    assert rendered('<a onclick="go()" style="width: 1px">') == (
        '<a data-console-on="go()" data-console-style="width: 1px">'
    )


def test_what_is_put_into_a_template_gets_no_nonce() -> None:
    text = rendered("<p>{{ text }}</p>", text='<script>fail()</script> onclick="fail()"')
    assert "<script" not in text
    assert "nonce" not in text
    marked = Environment(autoescape=True, extensions=[StrictPolicy])
    assert "nonce" not in marked.from_string("{{ text|safe }}").render(text="<script>fail()</script>")


# ---- Text stays text ----


async def test_script_in_questions_is_text(operator: httpx2.AsyncClient, app: FastAPI) -> None:
    for key in keys_of(app):
        for name in ("q", "search", "sort", "where", "page", "next", "_origin"):
            assert_harmless(await operator.get(f"{key}/list", params={name: HOSTILE}))
            assert_harmless(await operator.get(f"{key}/list", params={name: "javascript:fail()"}))


async def test_script_in_forms_comes_back_as_text(operator: httpx2.AsyncClient) -> None:
    hostile = "'\"><img src=x onerror=fail()>"
    answer = await post(operator, "tier/create", {"name": hostile * 5})
    assert answer.status_code == 422
    assert_harmless(answer)
    assert (await post(operator, "tier/create", {"name": hostile})).status_code == 303
    listed = await operator.get("tier/list")  # with what the library says about it
    assert_harmless(listed)
    assert text_of(listed).count(hostile) >= 2


# ---- Addresses are paths ----


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"X-Forwarded-Host": "evil.example"}])
async def test_no_address_is_built_from_what_the_caller_says(
    operator: httpx2.AsyncClient, app: FastAPI, headers: dict[str, str]
) -> None:
    cookie = {"Cookie": f"slipway_console={operator.cookies['slipway_console']}"}
    async with console_of(app) as stranger:
        paths = ("", "user/list", "user/list/", "tier/create", "login", "login/", "nothing", "http://test/admin")
        answers = [await stranger.get(path, headers=headers) for path in paths]
        answers += [await stranger.get(path, headers=headers | cookie) for path in paths]
    form = {"csrftoken": await token_of(operator)}
    answers.append(await operator.post("tier/create", data=form | {"name": "x"}, headers=headers | SAME_ORIGIN))
    answers.append(await operator.post("logout", data=form, headers=headers | SAME_ORIGIN))
    for answer in answers:
        assert "evil.example" not in answer.text, answer.url
        assert "evil.example" not in str(answer.headers), answer.url
        assert not re.search(r'(?:href|src|action)="https?://', answer.text), answer.url
        assert answer.headers.get("Location", "/").startswith("/")


async def test_the_address_without_a_slash_leads_to_the_console(app: FastAPI) -> None:
    async with console_of(app) as stranger:
        answer = await stranger.get("http://test/admin", headers={"Host": "evil.example"})
    assert answer.status_code in {303, 307, 308}
    assert answer.headers["Location"] == "/admin/"


# ---- Errors ----


async def test_errors_are_pages_of_the_console(operator: httpx2.AsyncClient) -> None:
    for path in ("nothing", "user/nothing", "user/detail?pk=99999", "user/detail?pk=x", "user/edit?pk=", "nobody/list"):
        assert_in_the_console_s_clothes(await operator.get(path), 404)
    for pk in ("-1", "99999999999999999999", "1;DROP TABLE tier", "%00", "١"):
        answer = await operator.get("tier/detail", params={"pk": pk})
        assert_in_the_console_s_clothes(answer, 404)
    assert_in_the_console_s_clothes(await post(operator, "tier/list"), 405)
    assert_in_the_console_s_clothes(await operator.get("logout"), 405)
    answer = await post(operator, "tier/create", {"name": ""})
    assert answer.status_code == 422
    assert_strict(answer)
    assert_in_the_console_s_clothes(await operator.post("tier/create", data={"name": "x"}), 403)


async def test_a_script_of_the_console_gets_errors_as_json(operator: httpx2.AsyncClient) -> None:
    answer = await operator.post("_api/tier/row-action?pk=1&name=delete", headers={"X-CSRFToken": "wrong"})
    assert (answer.status_code, list(answer.json())) == (403, ["msg"])
    assert_strict(answer)


async def test_an_error_that_nobody_expected_tells_nothing(
    operator: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*args: Any) -> None:
        raise RuntimeError("SELECT hashed_password FROM user -- /src/app/secret.py")

    monkeypatch.setattr(crud_tiers, "create", fail)
    answer = await post(operator, "tier/create", {"name": "gold"})
    assert_in_the_console_s_clothes(answer, 500)
    assert answer.headers["X-Request-ID"] in text_of(answer)
    assert "hashed_password" in capsys.readouterr().out, "the log has it"


async def test_without_the_database_nobody_is_let_in(
    operator: httpx2.AsyncClient, app: FastAPI, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await token_of(operator)
    for name in ("_sessions", "_readers"):  # put back at the end
        monkeypatch.setattr(database, name, getattr(database, name))
    away = database.open_database(settings.model_copy(update={"POSTGRES_PORT": free_port()}))
    try:
        for path in ("", "tier/list", "user/detail?pk=1", "nothing"):
            assert_in_the_console_s_clothes(await operator.get(path), 503)
        values = {"name": "gold", "csrftoken": token}
        answer = await operator.post("tier/create", data=values, headers=SAME_ORIGIN)
        assert_in_the_console_s_clothes(answer, 503)
        async with console_of(app) as stranger:
            assert_in_the_console_s_clothes(await sign_in(stranger, "operator"), 503)
    finally:
        monkeypatch.undo()
        await away.dispose()
    assert (await operator.get("tier/list")).status_code == 200


async def test_a_body_that_is_too_large_is_refused(operator: httpx2.AsyncClient, settings: Settings) -> None:
    token = await token_of(operator)
    large = "x" * (settings.MAX_BODY_BYTES + 1)
    for values in ({"data": {"name": large, "csrftoken": token}}, {"files": {"name": ("a", large.encode())}}):
        answer = await operator.post("tier/create", headers=SAME_ORIGIN | {"X-CSRFToken": token}, **values)
        assert answer.status_code == 413
    most = "x" * (settings.MAX_BODY_BYTES - 1000)
    answer = await operator.post("tier/create", data={"name": most, "csrftoken": token}, headers=SAME_ORIGIN)
    assert answer.status_code == 422, "large, and read"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n--y--"),
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=", b"--\r\n"),
        ("multipart/form-data; boundary=\xff", b"--\xff\r\n"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x\r\n' * 2000,
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"),
        ("application/x-www-form-urlencoded", b"a=1&" * 20_000),
        ("application/x-www-form-urlencoded", b"csrftoken=%ff%fe&%00=%00"),
        ("application/x-www-form-urlencoded", b"csrftoken=\xed\xa0\x80"),
        ("application/json", b"{"),
        ("", b"\x00"),
    ],
)
async def test_a_broken_body_is_refused_and_nothing_else(
    operator: httpx2.AsyncClient, db: AsyncSession, kind: str, body: bytes
) -> None:
    before = await all_rows(db)
    token = await token_of(operator)
    for headers in ({}, {"X-CSRFToken": token}):
        kinds = {"Content-Type": kind.encode("latin-1")} if kind else {}
        sent: dict[Any, Any] = {**kinds, **SAME_ORIGIN, **headers}
        for path in ("tier/create", "login", "_api/tier/action?name=delete", "logout?x"):
            if path == "logout?x" and headers:
                continue  # It needs no body.
            answer = await operator.post(path, content=body, headers=sent)
            assert answer.status_code in {303, 400, 403, 404, 422}, (path, answer.status_code)
            assert "Traceback" not in answer.text
    await db.rollback()
    assert await all_rows(db) == before
