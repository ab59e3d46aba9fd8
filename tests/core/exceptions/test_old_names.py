"""The exceptions that people paste from older boilerplates."""

import subprocess
import sys

import httpx2
import pytest
from fastapi import APIRouter

from app.core.config import Settings
from app.core.exceptions import http_exceptions
from app.core.setup import create_application
from tests.conftest import client_of
from tests.processes import ROOT

pytestmark = pytest.mark.anyio

STATUSES = {
    "BadRequestException": (400, "bad-request"),
    "UnauthorizedException": (401, "unauthorized"),
    "ForbiddenException": (403, "forbidden"),
    "NotFoundException": (404, "not-found"),
    "DuplicateValueException": (409, "conflict"),
    "UnprocessableEntityException": (422, "unprocessable"),
    "RateLimitException": (429, "too-many-requests"),
}


@pytest.mark.parametrize("keyword", [True, False])
async def test_they_take_a_text_and_are_problems(settings: Settings, keyword: bool) -> None:
    router = APIRouter()

    @router.get("/{name}")
    async def fail(name: str) -> None:
        error = getattr(http_exceptions, name)
        raise error(detail="It is so.") if keyword else error("It is so.")

    async with client_of(create_application(router, settings)) as client:
        client.base_url = httpx2.URL("http://test/")
        for name, (status, kind) in STATUSES.items():
            answer = await client.get(name)
            assert answer.status_code == status
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["detail"] == "It is so."
            assert answer.json()["type"] == f"urn:problem-type:{kind}"
            assert ("WWW-Authenticate" in answer.headers) is (status == 401)


@pytest.mark.parametrize("package", ["app", "src.app"])
def test_what_the_founding_document_and_older_code_import_is_there_by_both_names(package: str) -> None:
    code = f"""
import src
from {package}.core.config import settings
from {package}.core.db.database import async_get_db
from {package}.core.exceptions.cache_exceptions import CacheIdentificationInferenceError, InvalidRequestError
from {package}.core.exceptions.http_exceptions import {", ".join(STATUSES)}
from {package}.crud.crud_base import CRUDBase
from {package}.crud.crud_rate_limit import crud_rate_limits
from {package}.crud.crud_tier import crud_tiers
from {package}.crud.crud_token_blacklist import crud_token_blacklist
from {package}.crud.crud_users import crud_users
from {package}.crud import helper
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
