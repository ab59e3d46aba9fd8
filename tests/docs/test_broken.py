"""A block that is broken on purpose is red, whatever it is: else none of the other tests here shows anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from app.core.config import Settings, SettingsError
from tests.docs import data, not_run
from tests.docs.blocks import FOLDER, Block, Unclaimed, blocks_of, kind_of
from tests.docs.commands import Terminal, make
from tests.docs.forms import refuse_other_keys, refuse_other_lines
from tests.docs.surroundings import Code, own_routes
from tests.processes import BIN, ROOT


def block(text: str, language: str = "sh", comment: str = "") -> Block:
    """A block of a document that there is not."""
    return Block("docs/broken.md:1", language, text, tuple(comment.split()))


@pytest.mark.parametrize("text", ["ls\n", "make test\nls\n"])
@pytest.mark.parametrize("comment", ["", "nobody"])
def test_what_nobody_tries(text: str, comment: str) -> None:
    with pytest.raises(Unclaimed, match=r"docs/broken\.md:1"):
        kind_of(block(text, comment=comment))


def test_output_of_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- test: output -->\n```\nsomething\n```\n")
    with pytest.raises(Unclaimed, match="output"):
        blocks_of(page, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "python -m src.scripts.nothing",
        "cp src/.env.nothing src/.env",
        "cd nowhere && uvicorn app.main:app",
        "arq src.app.core.worker.settings.NoSettings",
        "docker compose -f docker-compose.nothing.yml up",
        "docker compose up nobody",
        "docker compose up --nothing",
        "docker compose rm",
        "docker compose -f docker-compose.prod.yml run --rm migrate python -m src.scripts.nothing",
        "kubectl apply -k nowhere",
        "kubectl forget -k deploy/kubernetes",
        "kubectl apply -k deploy/kubernetes --nothing",
        "pip install -r requirements.txt",
    ],
)
def test_commands(terminal: Terminal, text: str) -> None:
    with pytest.raises((AssertionError, OSError)):
        terminal.run(block(text))


def test_make(copy: Path) -> None:
    with pytest.raises(AssertionError, match="nothing"):
        make("make nothing", copy)


def test_every_reason_not_to_run_something_is_one() -> None:
    assert set(not_run.REASONS) == {"docker", "kubectl", "pip", "venv", "make"}
    assert all(not_run.REASONS.values())
    for command in ("docker ps", "kubectl get pods", "/a/venv/bin/pip install x", "python3 -m venv x"):
        assert not_run.reason(command.split()) in not_run.REASONS


async def run_python(settings: Settings, text: str) -> None:
    await own_routes(Code(block(text, "python"), settings))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("router = APIRouter()", NameError),
        ("from app.core.utils.cache import cash", ImportError),
        ("router =", SyntaxError),
    ],
)
async def test_python(settings: Settings, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await run_python(settings, text)


@pytest.mark.parametrize(
    ("language", "text"), [("json", '{"a": }'), ("yaml", "a: [\n"), ("toml", "a = \n"), ("ini", "a = 1\n")]
)
def test_data(language: str, text: str) -> None:
    with pytest.raises(Exception, match=r"(?i)expect|invalid|pars|section"):
        data.read_data(block(text, language))


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFAULT_RATE_LIMIT_LIMIT")
    with pytest.raises(SettingsError):
        data.apply_settings(block("DEFAULT_RATE_LIMIT_LIMIT=many", "env"), tmp_path)
    with pytest.raises(AssertionError):
        data.apply_settings(block("NOTHING=1", "env"), tmp_path)


def test_nginx(tmp_path: Path) -> None:
    for text in ("location / {", "location / { proxy_passes http://slipway; }"):
        with pytest.raises(AssertionError):
            data.try_nginx(block(text, "nginx"), tmp_path)


def test_paths_addresses_and_targets() -> None:
    with pytest.raises(AssertionError):
        data.find_paths(block("src/app/nothing.py   is nowhere\n", ""))
    with pytest.raises(ValueError, match="Redis"):
        data.read_redis_addresses(block("http://somewhere\n", ""))
    with pytest.raises(AssertionError):
        data.find_target(block("a table", "", "printed make nothing"))


def test_what_is_shown() -> None:
    with pytest.raises(AssertionError):
        refuse_other_lines("9be2d7b2e67f  sings", "4f1dcb07f1a6  signs")
    with pytest.raises(AssertionError):
        refuse_other_keys({"data": [{"id": 1}]}, {"data": [{"id": 1, "name": "x"}]})


def test_a_copy_with_broken_blocks_fails_the_run(tmp_path: Path) -> None:
    """What `make check` runs, on a copy of the documents: one block has a mistake, and one is nobody's."""
    shutil.copytree(FOLDER / "docs", tmp_path / "docs")
    shutil.copyfile(FOLDER / "README.md", tmp_path / "README.md")
    for page, there, broken in (
        ("docs/rate-limits.md", "redis+cluster://", "redis+bunch://"),
        ("docs/concepts.md", "# Concepts\n", "# Concepts\n\n```sh\nls\n```\n"),
    ):
        text = (tmp_path / page).read_text()
        assert there in text
        (tmp_path / page).write_text(text.replace(there, broken))
    run = subprocess.run(
        [
            BIN / "python",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--noconftest",  # These tests have no fixtures, which the app would be loaded for.
            "tests/docs/test_data.py",
            "-k",
            "block or read",
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        | {"DOCUMENTS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1
    assert "docs/rate-limits.md:" in run.stdout
    assert "docs/concepts.md:3 (sh): no test runs this block" in run.stdout
    assert "2 failed" in run.stdout
