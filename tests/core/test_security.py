"""Tokens. The forged tokens are signed by hand, with the real key wherever that is not the point."""

import base64
import hmac
import json
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import get_current_user, get_optional_user
from app.core import security
from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.keyring import kid_of
from app.core.security import (
    InvalidToken,
    create_access_token,
    create_refresh_token,
    decode_access_token,
    parse_refresh_token,
)
from app.models.user import User
from tests.helper import counted_statements, create_user, signed_in

pytestmark = pytest.mark.anyio

SETTINGS = Settings()
KEY = SETTINGS.SECRET_KEY.get_secret_value()
USER = UUID("0b0f5c39-8f3f-4a53-9e0c-6f3f6f1f7a11")
LOGIN = UUID("7c9e6679-7425-40de-944b-e07fc1f90ae7")
HEADER = {"alg": "HS256", "typ": "at+jwt", "kid": kid_of(KEY)}
CLAIMS = ("iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp")


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good access token, but for the changes; what is changed to `...` is left out."""
    now = int(time.time())
    good = {"iss": "slipway", "aud": "slipway", "sub": str(USER), "sid": LOGIN.hex, "jti": "a token"}
    times = {"iat": now, "nbf": now, "exp": now + 900}
    return {name: value for name, value in (good | times | changes).items() if value is not ...}


def encoded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Any, payload: Any, *, key: str = KEY, hash_name: str = "sha256") -> str:
    """RFC 7515, without a library that would refuse to make what we need."""
    message = f"{encoded(header)}.{encoded(payload)}"
    return f"{message}.{encoded(hmac.digest(key.encode(), message.encode(), hash_name))}"


def forged(**changes: Any) -> str:
    return signed(HEADER, claims(**changes))


def with_header(**changes: Any) -> str:
    return signed({name: value for name, value in (HEADER | changes).items() if value is not ...}, claims())


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


GOOD = signed(HEADER, claims())
HEAD, BODY, SIGNATURE = GOOD.split(".")

FORGERIES = {
    # Somebody else's signature, or none.
    "another key": signed(HEADER, claims(), key="k" * 32),
    "the empty key": signed(HEADER, claims(), key=""),
    "no signature": f"{HEAD}.{BODY}.",
    "no signature part": f"{HEAD}.{BODY}",
    "a shortened signature": GOOD[:-2],
    "a changed payload": f"{HEAD}.{encoded(claims(sub=str(uuid4())))}.{SIGNATURE}",
    "a changed header": f"{encoded(HEADER | {'typ': 'rt+jwt'})}.{BODY}.{SIGNATURE}",
    "alg none": f"{encoded(HEADER | {'alg': 'none'})}.{BODY}.",
    "alg none, signed": with_header(alg="none"),
    "alg NONE": f"{encoded(HEADER | {'alg': 'NONE'})}.{BODY}.",
    "alg HS384": signed(HEADER | {"alg": "HS384"}, claims(), hash_name="sha384"),
    "alg RS256": with_header(alg="RS256"),
    "alg unknown": with_header(alg="HS257"),
    "alg missing": with_header(alg=...),
    "alg null": with_header(alg=None),
    "alg an object": with_header(alg={"HS256": 1}),
    # Header parameters that tell a careless verifier where the key is, or to skip something.
    "jwk": with_header(jwk={"kty": "oct", "k": encoded(b"k" * 32)}),
    "jku": with_header(jku="https://example.com/keys"),
    "kid": with_header(kid="../../dev/null"),
    "kid missing": with_header(kid=...),
    "kid null": with_header(kid=None),
    "kid empty": with_header(kid=""),
    "kid of another key": with_header(kid=kid_of("k" * 32)),
    "kid not a string": with_header(kid=1),
    "kid a list": with_header(kid=[kid_of(KEY)]),
    "x5u": with_header(x5u="https://example.com/cert"),
    "crit": with_header(crit=["exp"], exp=1),
    "crit empty": with_header(crit=[]),
    "b64 false": with_header(b64=False, crit=["b64"]),
    "b64 true": with_header(b64=True),
    "zip": with_header(zip="DEF"),
    "cty": with_header(cty="JWT"),
    # Another kind of token.
    "typ missing": with_header(typ=...),
    "typ JWT": with_header(typ="JWT"),
    "typ of a refresh token": with_header(typ="rt+jwt"),
    "typ in capitals": with_header(typ="AT+JWT"),
    "typ a list": with_header(typ=["at+jwt"]),
    # Claims.
    "another issuer": forged(iss="somebody"),
    "a list of issuers": forged(iss=["slipway"]),
    "another audience": forged(aud="somebody"),
    "a list of audiences": forged(aud=["slipway"]),
    "several audiences": forged(aud=["slipway", "somebody"]),
    "no audience in the list": forged(aud=[]),
    **{f"{name} missing": forged(**{name: ...}) for name in CLAIMS},
    **{f"{name} null": forged(**{name: None}) for name in CLAIMS},
    "expired": forged(exp=int(time.time()) - 1),
    "exp not a number": forged(exp="soon"),
    "exp not a number after all": forged(exp=float("nan")),
    "exp infinite": forged(exp=float("inf")),
    "exp past the calendar": forged(exp=10**15),
    "exp of 5,000 digits": signed(
        HEADER, json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": 1' + "0" * 5000).encode()
    ),
    "nbf in the future": forged(nbf=int(time.time()) + 86_400),
    "nbf not a number": forged(nbf="now"),
    "iat in the future": forged(iat=int(time.time()) + 86_400),
    "sub not a uuid": forged(sub="ada"),
    "sub a number": forged(sub=1),
    "sub empty": forged(sub=""),
    "sub a lone surrogate": forged(sub="\ud800"),
    "sid not a uuid": forged(sid="a login"),
    "sid a number": forged(sid=1),
    "jti not a string": forged(jti=1),
    # Not a token at all.
    "payload not an object": signed(HEADER, [claims()]),
    "payload not JSON": signed(HEADER, b"slipway"),
    "payload not UTF-8": signed(HEADER, b"\xff\xfe"),
    "payload empty": signed(HEADER, b""),
    "payload deep": signed(HEADER, deep(100_000)),
    "header not an object": signed([HEADER], claims()),
    "header not JSON": signed(b"HS256", claims()),
    "header deep": signed(deep(100_000), claims()),
    "header with a deep member": signed(b'{"alg":"HS256","typ":' + deep(5_000) + b"}", claims()),
    "four parts": f"{GOOD}.{SIGNATURE}",
    "five parts": "a.b.c.d.e",
    "empty": "",
    "dots": "..",
    "many dots": "." * 100_000,
    "a word": "garbage",
    "not base64": "!!!.???.***",
    "huge": "A" * 1_000_000,
    "huge parts": ".".join(["A" * 400_000] * 3),
    "non-ASCII": "\u00fc.\u00fc.\u00fc",
    "a lone surrogate": f"\ud800{GOOD}",
    "NUL": f"{GOOD}\0",
    "a space in front": f" {GOOD}",
    "a line break behind": f"{GOOD}\n",
    "padded": f"{HEAD}=.{BODY}.{SIGNATURE}",
    "two of them": f"{GOOD} {GOOD}",
}


def test_the_hand_made_token_is_good() -> None:
    """Otherwise the forgeries below would all be refused for one and the same reason."""
    token = decode_access_token(GOOD, SETTINGS)
    assert (token.user_uuid, token.session_id, token.jti) == (USER, LOGIN, "a token")


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused(name: str) -> None:
    with pytest.raises(InvalidToken):
        decode_access_token(FORGERIES[name], SETTINGS)


@pytest.mark.parametrize("name", [name for name in FORGERIES if name != "expired"])
def test_allowing_expired_tokens_allows_nothing_else(name: str) -> None:
    with pytest.raises(InvalidToken):
        decode_access_token(FORGERIES[name], SETTINGS, allow_expired=True)


def test_an_expired_token_is_read_where_that_is_allowed() -> None:
    assert decode_access_token(FORGERIES["expired"], SETTINGS, allow_expired=True).user_uuid == USER


def test_a_token_says_what_was_put_into_it() -> None:
    token = decode_access_token(create_access_token(SETTINGS, USER, LOGIN), SETTINGS)

    assert (token.user_uuid, token.session_id) == (USER, LOGIN)
    assert token.expires_at.timestamp() - time.time() == pytest.approx(900, abs=5)


def test_a_server_whose_clock_is_behind_takes_a_fresh_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = utc_now() + timedelta(seconds=3)
    with monkeypatch.context() as patched:
        patched.setattr(security, "utc_now", lambda: ahead)
        token = create_access_token(SETTINGS, USER, LOGIN)
    assert decode_access_token(token, SETTINGS).user_uuid == USER


def test_a_token_of_another_key_or_issuer_or_algorithm_is_refused() -> None:
    ours = SETTINGS.model_copy(update={"SECRET_KEY": SecretStr(KEY * 2)})  # long enough for HS512
    for changed in ({"SECRET_KEY": SecretStr(KEY * 3)}, {"TOKEN_ISSUER": "somebody"}, {"ALGORITHM": "HS512"}):
        theirs = create_access_token(ours.model_copy(update=changed), USER, LOGIN)
        with pytest.raises(InvalidToken):
            decode_access_token(theirs, ours)


def test_no_two_tokens_are_alike() -> None:
    assert len({create_access_token(SETTINGS, USER, LOGIN) for _ in range(100)}) == 100


# ---- Refresh tokens ----

SALT = b"0123456789abcdef"


def test_a_refresh_token_is_genuine_for_its_login_generation_and_key_alone() -> None:
    token = parse_refresh_token(create_refresh_token(SETTINGS, LOGIN, SALT, 3))
    other_key = SETTINGS.model_copy(update={"SECRET_KEY": SecretStr("k" * 32)})

    assert (token.session_id, token.generation) == (LOGIN, 3)
    assert token.is_genuine(SALT, SETTINGS)
    assert not token.is_genuine(SALT[::-1], SETTINGS)
    assert not token.is_genuine(SALT, other_key)
    assert not replace(token, generation=4).is_genuine(SALT, SETTINGS)
    assert not replace(token, session_id=uuid4()).is_genuine(SALT, SETTINGS)
    assert not replace(token, secret="A" * 43).is_genuine(SALT, SETTINGS)


def test_what_has_not_the_form_of_a_refresh_token_is_refused() -> None:
    good = create_refresh_token(SETTINGS, LOGIN, SALT, 3)
    login, generation, secret = good.split(".")
    for broken in (
        "",
        ".",
        "..",
        f"{login}.{generation}",
        f"{good}.",
        f" {good}",
        f"{good}\n",
        f"{login.upper()}.{generation}.{secret}",
        f"{LOGIN}.{generation}.{secret}",
        f"{login}.-1.{secret}",
        f"{login}.03.{secret}",
        f"{login}.\u0663.{secret}",
        f"{login}.{'9' * 5_000}.{secret}",
        f"{login}.{generation}.{secret}=",
        f"{login}.{generation}.{secret[:-1]}",
        GOOD,
    ):
        with pytest.raises(InvalidToken):
            parse_refresh_token(broken)


# ---- Several keys ----


def test_old_keys_verify_and_the_new_one_signs() -> None:
    old, new = "o1d-" * 10, "n3w-" * 10
    before = SETTINGS.model_copy(update={"SECRET_KEY": SecretStr(old)})
    after = SETTINGS.model_copy(update={"SECRET_KEY": SecretStr(new), "OTHER_SECRET_KEYS": SecretStr(old)})
    retired = SETTINGS.model_copy(update={"SECRET_KEY": SecretStr(new)})
    access, refresh = create_access_token(before, USER, LOGIN), create_refresh_token(before, LOGIN, SALT, 3)

    assert decode_access_token(access, after).user_uuid == USER
    assert parse_refresh_token(refresh).is_genuine(SALT, after)
    assert decode_access_token(create_access_token(after, USER, LOGIN), retired).user_uuid == USER
    with pytest.raises(InvalidToken):
        decode_access_token(create_access_token(after, USER, LOGIN), before)
    with pytest.raises(InvalidToken):
        decode_access_token(access, retired)
    assert not parse_refresh_token(refresh).is_genuine(SALT, retired)


@pytest.mark.parametrize(("minutes", "verifies"), [(1, True), (-1, False)])
def test_an_old_key_verifies_until_its_moment(minutes: int, verifies: bool) -> None:
    old, moment = "o1d-" * 10, utc_now() + timedelta(minutes=minutes)
    before = SETTINGS.model_copy(update={"SECRET_KEY": SecretStr(old)})
    after = SETTINGS.model_copy(update={"OTHER_SECRET_KEYS": SecretStr(f"{old}@{moment.isoformat()}")})
    access, refresh = create_access_token(before, USER, LOGIN), create_refresh_token(before, LOGIN, SALT, 3)

    assert parse_refresh_token(refresh).is_genuine(SALT, after) is verifies
    with nullcontext() if verifies else pytest.raises(InvalidToken):
        decode_access_token(access, after)


def test_a_key_cannot_be_taken_for_another_by_its_name() -> None:
    old = "o1d-" * 10
    both = SETTINGS.model_copy(update={"OTHER_SECRET_KEYS": SecretStr(old)})
    with pytest.raises(InvalidToken):
        decode_access_token(signed(HEADER | {"kid": kid_of(old)}, claims()), both)


# ---- Over HTTP ----


async def test_a_forgery_is_refused_before_any_sql(client: httpx2.AsyncClient) -> None:
    with counted_statements() as statements:
        for name, forgery in FORGERIES.items():
            # Spaces at its ends are the header's and no longer the token's.
            if forgery.isascii() and forgery.isprintable() and forgery == forgery.strip() and len(forgery) < 50_000:
                for path in ("user/me/", "users", "user/ada"):
                    answer = await client.get(path, headers={"Authorization": f"Bearer {forgery}"})
                    assert answer.status_code == 401, name
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert statements == []


async def test_who_is_asking_costs_one_statement(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    headers = signed_in(await create_user(db), settings)
    with counted_statements() as statements:
        assert (await client.get("user/me/", headers=headers)).status_code == 200
    assert len(statements) == 1


@pytest.mark.parametrize("dependency", [get_current_user, get_optional_user])
async def test_who_is_asking_is_overridden_for_all_routes(
    dependency: Any, app: FastAPI, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes by the one before it, so that a sign-in of one's own stands before superusers' routes, too."""
    ada = User(id=1, name="Ada", username="ada", email="a@example.com", hashed_password="x", is_superuser=True)
    monkeypatch.setitem(app.dependency_overrides, dependency, lambda: ada)
    assert (await client.get("user/me/")).json()["username"] == "ada"
    assert (await client.get("security_events")).status_code == 200


async def test_a_bad_authorisation_header_is_401(client: httpx2.AsyncClient) -> None:
    names = ("alg none", "another key", "jwk", "expired", "aud missing", "sub not a uuid", "header with a deep member")
    headers = [f"Bearer {FORGERIES[name]}".encode() for name in names]
    headers += [b"Bearer", b"Bearer ", b"bearer x", b"Bearer \xff\xfe", b"Bearer a b c", b"Basic YWRhOmFkYQ==", b""]

    for header in headers:
        for path in ("user/me/", "users"):  # Also where one need not be signed in, nobody is taken for anonymous.
            answer = await client.get(path, headers={b"Authorization": header})
            assert answer.status_code == 401, header
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.headers["Content-Type"] == "application/problem+json"


async def test_a_second_authorisation_header_is_401(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    good = signed_in(await create_user(db), settings)["Authorization"]
    assert (await client.get("users", headers=[("Authorization", good)])).status_code == 200
    for second in ("Bearer x", "Basic x", good):
        answer = await client.get("users", headers=[("Authorization", good), ("Authorization", second)])
        assert answer.status_code == 401
