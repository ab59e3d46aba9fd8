"""Schemathesis asks the running app whatever its own OpenAPI document allows, and some of what it forbids.

Every answer has to be one that the document describes, and none may be a 5xx.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4
from zlib import crc32

import pytest
import schemathesis
from hypothesis import HealthCheck, strategies
from hypothesis import settings as hypothesis_settings
from schemathesis import Case
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.api import build_router
from app.core.config import Settings, get_settings
from app.core.passwords import is_common
from app.core.setup import create_application
from app.models.user import User
from scripts.embedded import Valkey
from tests.conftest import Execute, cloned_database, connect, opened_session
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, signed_in
from tests.processes import running_api
from tests.schema_checks import excluded_checks

# What the database holds, by the name of a path parameter.
KNOWN = {"username": "owner", "name": "pro", "tier_name": "pro", "id": "1"}
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "3"))  # per operation, each asked by every kind of caller

Headers = Callable[[], dict[str, str]]

# The schema can only say "email"; that nobody gets mail under .test or .invalid is the validator's knowledge.
schemathesis.openapi.format(
    "email", strategies.emails(domains=strategies.sampled_from(["example.com", "ä.example.net"]))
)
# Nor can it list the passwords that everybody tries first.
schemathesis.openapi.format(
    "password", strategies.text(min_size=8, max_size=128).filter(lambda password: not is_common(password))
)

_settings = Settings()
document = create_application(router=build_router(_settings), settings=_settings).openapi()
paths: dict[str, Any] = document["paths"]


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> BaseSchema:
    """The document with one path only.

    Schemathesis can also make a test of each operation by itself, but then every test process makes up the cases of
    all of them before the first test runs.
    """
    request.node._nodeid = request.node.nodeid  # Schemathesis looks for it where pytest 9.2 no longer has it.
    return schemathesis.openapi.from_dict({**document, "paths": {request.param: paths[request.param]}})


@pytest.fixture(scope="module")
def world(execute: Execute, migrated_template: str, valkey: Valkey) -> Iterator[tuple[str, dict[str, Headers]]]:
    """A running server with somebody and something in its database, and the headers of each kind of caller."""
    with pytest.MonkeyPatch.context() as monkeypatch, cloned_database(execute, monkeypatch, migrated_template):
        settings = get_settings()
        user, admin = asyncio.run(_fill_database(settings))
        callers: dict[str, Headers] = {
            "nobody": dict,
            # A login of its own every time, since some calls end it.
            "user": lambda: signed_in(user, settings, runner.run(start_login(user))),
            "superuser": lambda: signed_in(admin, settings, runner.run(start_login(admin))),
        }
        with asyncio.Runner() as runner, running_api() as url:
            connection = runner.run(connect(settings.POSTGRES_DB))

            async def start_login(user: User) -> UUID:
                await connection.execute(_START_LOGIN, session_id := uuid4(), user.id)
                return session_id

            yield url, callers
            runner.run(connection.close())


_START_LOGIN = """
    INSERT INTO login_session
        (id, user_id, salt, generation, rotated_at, created_at, last_used_at, expires_at)
    VALUES ($1, $2, '', 0, now(), now(), now(), now() + interval '1 hour')
"""


async def _fill_database(settings: Settings) -> tuple[User, User]:
    async with opened_session(settings) as db:
        user, admin = await create_user(db, username="owner"), await create_superuser(db)
        await create_rate_limit(db, await create_tier(db))
        return user, admin


@pytest.mark.parametrize("schema", paths, indirect=True)
@schemathesis.pytest.from_fixture("schema").parametrize()
@hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_every_answer_is_one_that_the_schema_describes(
    case: "Case[Any]", world: tuple[str, dict[str, Headers]]
) -> None:
    url, callers = world
    excluded = excluded_checks(document, case)
    if has_guessable_password(case):
        excluded.append(positive_data_acceptance)
    for headers in askers(case, list(callers.values())):
        case.call_and_validate(base_url=url, headers=headers(), excluded_checks=excluded)


def has_guessable_password(case: "Case[Any]") -> bool:
    """Whether the password repeats the user name or the address: no schema can refuse that."""
    sent = case.body if isinstance(case.body, dict) else {}
    words = [str(sent.get(name)) for name in ("password", "username", "email")]
    return "password" in sent and is_common(*words)


def askers(case: "Case[Any]", callers: list[Headers]) -> list[Headers]:
    """Who asks: everybody what is allowed, and one of them, which depends on the case alone, what is not."""
    if is_allowed(case):
        return callers
    what = repr((case.method, case.path_parameters, case.query, case.headers, case.body))
    return [callers[crc32(what.encode(errors="replace")) % len(callers)]]


def is_allowed(case: "Case[Any]") -> bool:
    """Whether the document allows what this case asks."""
    return case.meta is None or case.meta.generation.mode.is_positive


@pytest.mark.parametrize("schema", [path for path in paths if "get" in paths[path]], indirect=True)
@schemathesis.pytest.from_fixture("schema").include(method="GET").parametrize()
@hypothesis_settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_exists_is_shown_as_the_schema_describes(case: "Case[Any]", world: tuple[str, dict[str, Headers]]) -> None:
    url, callers = world
    if not is_allowed(case):
        return  # The test above asks that too.
    case.path_parameters = {name: KNOWN.get(name, value) for name, value in (case.path_parameters or {}).items()}
    for headers in callers.values():
        case.call_and_validate(base_url=url, headers=headers(), excluded_checks=[negative_data_rejection])
