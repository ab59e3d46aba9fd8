"""What projects add does not turn given tests red; where one has to learn of it, its message says which line to add.

Each addition is made in a copy of the project, and the given tests that look at the whole are run there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

SETTINGS = """
from typing import Literal
from pydantic import Field, SecretStr
from app.core.settings.base import SettingsGroup

class ShopSettings(SettingsGroup):
    SHOP_ENABLED: bool = Field(False, description="true or false")
    SHOP_MODE: Literal["test", "live"] = Field("test", description="test or live")
    SHOP_API_KEY: SecretStr | None = Field(None, description="the key of the payment provider")
    SHOP_TOKEN: SecretStr = Field(SecretStr(""), description="a token")
    SHOP_PUBLIC_URL: str | None = Field(None, description="an address")
"""
ROUTER = '''
"""The shop."""
from fastapi import APIRouter
from app.core.schemas import Message

router = APIRouter(tags=["shop"])

@router.get("/shop")
async def read_shop() -> Message:
    """Read what there is to buy."""
    return Message(message="nothing")
'''
GIVEN = (
    "tests/test_architecture.py",
    "tests/core/test_config.py::test_the_example_names_every_setting",
    "tests/core/test_config.py::test_no_two_groups_share_the_name_of_a_validator",
    "tests/core/test_config.py::test_secrets_do_not_show",
    "tests/deploy/test_compose.py",
    "tests/deploy/test_compose_production.py",
    "tests/deploy/test_kubernetes.py",
)
COPIED = ("src", "tests", "deploy", "pyproject.toml", "docker-compose.yml", "docker-compose.prod.yml", "Dockerfile")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of this project, without what is not asked for here."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".env", "logs")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "default.conf").symlink_to(ROOT / "default.conf")
    return tmp_path


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file.name} has no {old!r}"
    file.write_text(text.replace(old, new, 1))


def run(project: Path, *tests: str) -> tuple[int, str]:
    """The exit code and the output of given tests in a copy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=project, env=kept, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def add_router(project: Path, lines: str) -> None:
    app = project / "src" / "app"
    (app / "api" / "v1" / "shop.py").write_text(ROUTER)
    build = app / "api" / "__init__.py"
    replaced(build, "    sessions,\n", "    sessions,\n    shop,\n")
    replaced(build, "    router.include_router(limited)\n", f"{lines}    router.include_router(limited)\n")


def add_settings(project: Path, source: str = SETTINGS) -> None:
    core = project / "src" / "app" / "core"
    (core / "settings" / "shop.py").write_text(source)
    given, more = "\n\nclass Settings(\n", "from app.core.settings.shop import ShopSettings"
    replaced(core / "config.py", given, f"\n{more}\n{given}    ShopSettings,\n")


def failed_in(output: str) -> set[str]:
    return set(re.findall(r"(?m)^FAILED \S+::(\w+)", output))


def lines_to_add(output: str, words: str) -> list[str]:
    """The lines that stand in a message after these words."""
    _, found, rest = output.partition(f"AssertionError: {words}")
    assert found, output
    lines = [line.removeprefix("E").strip() for line in rest.splitlines()[1:]]
    return lines[: next(number for number, line in enumerate(lines) if not line or line.startswith("assert"))]


def test_settings_and_a_router_that_a_value_switches(project: Path) -> None:
    add_settings(project)
    add_router(project, "    if settings.SHOP_ENABLED:\n        limited.include_router(shop.router)\n")

    status, output = run(project, *GIVEN)

    assert status == 1, output
    assert failed_in(output) == {"test_the_example_names_every_setting"}
    example = lines_to_add(output, "Add to src/.env.example")
    assert example == [
        '# SHOP_API_KEY=""',
        '# SHOP_ENABLED="False"',
        '# SHOP_MODE="test"',
        '# SHOP_PUBLIC_URL=""',
        '# SHOP_TOKEN=""',
    ]

    # Exactly these lines are all that is missing.
    file = project / "src" / ".env.example"
    file.write_text("\n".join([file.read_text(), *example, ""]))
    settings_env = project / "deploy" / "kubernetes" / "settings.env"
    settings_env.write_text(f"{settings_env.read_text()}SHOP_PUBLIC_URL=https://shop.example.com\n")
    status, output = run(project, *GIVEN)
    assert status == 0, output


def test_a_router_that_is_mounted_nowhere(project: Path) -> None:
    add_router(project, "")
    status, output = run(project, "tests/test_architecture.py::test_every_router_is_mounted")
    assert status == 1, output
    assert "app.api.v1.shop is not mounted: add `limited.include_router(shop.router)` to build_router() in" in output


def test_a_route_that_is_always_there(project: Path) -> None:
    add_router(project, "    limited.include_router(shop.router)\n")
    test = "test_the_table_has_every_route_and_no_other"
    status, output = run(project, "tests/test_architecture.py", f"tests/api/test_authorisation_matrix.py::{test}")
    assert status == 1, output
    assert failed_in(output) == {test}
    assert "MATRIX in tests/api/authorisation_matrix.py lacks these rows" in output
    assert "('GET', '/shop'): (" in output


def test_a_setting_that_has_to_be_set(project: Path) -> None:
    add_settings(project, SETTINGS.replace('Field(SecretStr(""), ', "Field("))
    status, output = run(project, "tests/test_architecture.py")
    assert status == 4, output
    assert "SHOP_TOKEN must be a token. It is not set." in output
    assert "in os.environ.update() at the top of tests/conftest.py" in output
    conftest = project / "tests" / "conftest.py"
    replaced(conftest, "    ENV_FILE=os.devnull,\n", '    ENV_FILE=os.devnull,\n    SHOP_TOKEN="of the tests",\n')
    status, output = run(project, "tests/test_architecture.py::test_every_router_is_mounted")
    assert status == 0, output
