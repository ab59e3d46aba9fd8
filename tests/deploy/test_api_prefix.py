"""Files that cannot ask the code where the API is."""

import re
from pathlib import Path

import pytest

from app.api import PREFIX
from tests.deploy.files import COMPOSE, COMPOSE_PROD, DOCKERFILE, KUBERNETES
from tests.processes import ROOT

PROBE = re.compile(r"(?:127\.0\.0\.1(?::[0-9]+)?|path: )((?:/[\w-]+)*)/(?:health|ready)\b")


@pytest.mark.parametrize(
    "file", [DOCKERFILE, COMPOSE, COMPOSE_PROD, KUBERNETES / "web.yaml"], ids=lambda file: str(file.relative_to(ROOT))
)
def test_probes_ask_where_the_api_is(file: Path) -> None:
    probes = [
        (number, found[1])
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if (found := PROBE.search(line)) is not None
    ]
    assert probes, f"{file.name} has no probe any more: remove it from this test"
    for number, prefix in probes:
        assert prefix == PREFIX, (
            f"The API is at {PREFIX!r} (PREFIX in src/app/api/__init__.py): change line {number} of "
            f"{file.relative_to(ROOT)}, which asks below {prefix!r}."
        )
