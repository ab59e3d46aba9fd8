"""The schema-conformance test takes operations whose body is judged by its content: files, and forms with files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis import Case
from schemathesis.schemas import BaseSchema

from tests.processes import running_api
from tests.schema_checks import excluded_checks, takes_a_file
from tests.upload_app import app

document = app.openapi()
UPLOADS = ("/upload", "/form", "/forms", "/bytes")


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> BaseSchema:
    request.node._nodeid = request.node.nodeid  # Schemathesis looks for it where pytest 9.2 no longer has it.
    return schemathesis.openapi.from_dict({**document, "paths": {request.param: document["paths"][request.param]}})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("STORAGE_URL", f"file://{folder}")
        with running_api("uvicorn", "tests.upload_app:app", "--port", "{port}", "--log-level", "warning") as url:
            yield url
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("schema", UPLOADS, indirect=True)
@schemathesis.pytest.from_fixture("schema").parametrize()
@hypothesis_settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_every_answer_to_an_upload_is_one_that_the_schema_describes(case: "Case[Any]", url: str) -> None:
    case.call_and_validate(base_url=url, excluded_checks=excluded_checks(document, case))


def test_only_uploads_are_exempt() -> None:
    takes_files = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if takes_a_file(document, operation)
    }
    assert takes_files == set(UPLOADS)
