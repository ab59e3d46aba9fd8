"""Schemathesis asks the running app whatever its own OpenAPI document allows, and some of what it forbids.

Every answer has to be one that the document describes, and none may be a 5xx.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, strategies
from hypothesis import settings as hypothesis_settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection

from app.api import build_router
from app.core.config import Settings, get_settings
from app.core.setup import create_application
from app.models.user import User
from scripts.embedded import Valkey
from tests.conftest import cloned_database, opened_session
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, signed_in
from tests.processes import running_api

# What the database holds, by the name of a path parameter.
KNOWN = {"username": "owner", "name": "pro", "tier_name": "pro", "id": "1"}
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "3"))  # per operation and caller

Headers = Callable[[], dict[str, str]]

# The schema can only say "email"; that nobody gets mail under .test or .invalid is the validator's knowledge.
schemathesis.openapi.format(
    "email", strategies.emails(domains=strategies.sampled_from(["example.com", "ä.example.net"]))
)

_settings = Settings()
_app = create_application(router=build_router(_settings), settings=_settings)
schema = schemathesis.openapi.from_dict(_app.openapi())


@pytest.fixture(scope="module")
def world(migrated_template: str, valkey: Valkey) -> Iterator[tuple[str, dict[str, Headers]]]:
    """A running server with somebody and something in its database, and the headers of each kind of caller."""
    with pytest.MonkeyPatch.context() as monkeypatch, cloned_database(monkeypatch, migrated_template):
        settings = get_settings()
        user, admin = asyncio.run(_fill_database(settings))
        callers: dict[str, Headers] = {
            "nobody": dict,
            # A login of its own every time, since some calls end it.
            "user": lambda: signed_in(user, settings),
            "superuser": lambda: signed_in(admin, settings),
        }
        with running_api() as url:
            yield url, callers


async def _fill_database(settings: Settings) -> tuple[User, User]:
    async with opened_session(settings) as db:
        user, admin = await create_user(db, username="owner"), await create_superuser(db)
        await create_rate_limit(db, await create_tier(db))
        return user, admin


@pytest.mark.parametrize("caller", ["nobody", "user", "superuser"])
@schema.parametrize()
@hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_every_answer_is_one_that_the_schema_describes(
    case: "Case[Any]", caller: str, world: tuple[str, dict[str, Headers]]
) -> None:
    url, callers = world
    case.call_and_validate(base_url=url, headers=callers[caller]())


@pytest.mark.parametrize("caller", ["nobody", "user", "superuser"])
@schema.include(method="GET").parametrize()
@hypothesis_settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_exists_is_shown_as_the_schema_describes(
    case: "Case[Any]", caller: str, world: tuple[str, dict[str, Headers]]
) -> None:
    url, callers = world
    case.path_parameters = {name: KNOWN.get(name, value) for name, value in (case.path_parameters or {}).items()}
    case.call_and_validate(base_url=url, headers=callers[caller](), excluded_checks=[negative_data_rejection])
