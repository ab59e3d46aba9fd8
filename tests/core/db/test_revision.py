"""A new migration is named, numbered, formatted and typed as the project's own are."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError

from tests.migrations_kit import Project
from tests.processes import BIN, ROOT

MODEL = """
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

from pydantic import EmailStr, NaiveDatetime
from sqlalchemy import JSON, ARRAY, String, UniqueConstraint, CheckConstraint, Index, text
from sqlalchemy.dialects.postgresql import ENUM, INET, JSONB
from sqlmodel import Field, SQLModel

from app.core.db.models import SoftDeleteMixin, TimestampMixin, UUIDMixin


class State(Enum):
    DRAFT = 1
    PUBLISHED = 2


class Kind(StrEnum):
    NEWS = "news"


class Post(UUIDMixin, TimestampMixin, SoftDeleteMixin, table=True):
    __table_args__ = (
        UniqueConstraint("title", "author_id"),
        CheckConstraint("words >= 0", name="words_positive"),
        Index("ix_post_live", "title", postgresql_where=text("NOT is_deleted")),
    )

    id: int = Field(default=None, primary_key=True)
    author_id: int = Field(foreign_key="user.id", ondelete="CASCADE", index=True)
    title: str = Field(max_length=50)
    text: str
    state: State = State.DRAFT
    kind: Kind | None = None
    native: Kind = Field(sa_type=ENUM(Kind, name="kind"))
    words: int = 0
    price: Decimal = Field(max_digits=10, decimal_places=2)
    ratio: float
    day: date
    hour: time
    at: NaiveDatetime
    moment: datetime
    span: timedelta
    blob: bytes
    address: IPv4Address
    mail: EmailStr
    inet: str = Field(sa_type=INET)
    meta: dict[str, Any] = Field(sa_type=JSON, sa_column_kwargs={"server_default": "{}"})
    tags: list[str] = Field(sa_type=ARRAY(String(30)))
    note: str = Field(sa_column_kwargs={"comment": "’" + "A very long comment. " * 9, "server_default": "x" * 140})
"""


@pytest.fixture
def project(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The migrations that there are, of a database that has them."""
    copy = shutil.copytree(ROOT / "src/migrations", tmp_path / "migrations")
    return Project(copy, database, monkeypatch, formatted=True)


@pytest.fixture
def copy(tmp_path: Path, database: str) -> Path:
    """A copy of the project, for `alembic` as a command."""
    ignore = shutil.ignore_patterns("__pycache__", ".env")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def alembic(copy: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `alembic` in `src/`, as SEED.md and make do."""
    command = [str(BIN / "alembic"), *args]
    return subprocess.run(command, cwd=copy / "src", env=os.environ | environment, capture_output=True, text=True)


def newest(folder: Path) -> Path:
    return max((folder / "versions").glob("2*.py"), key=lambda path: path.stat().st_mtime_ns)


def next_number(folder: Path) -> str:
    numbers = [int(path.name.split("_")[1]) for path in (folder / "versions").glob("2*.py")]
    return f"{max(numbers) + 1:04d}"


def test_what_is_written_passes_the_checks(copy: Path) -> None:
    (copy / "src/app/models/post.py").write_text(MODEL)
    models = copy / "src/app/models/__init__.py"
    models.write_text(models.read_text() + "\nfrom app.models.post import Post\n")
    migrations = copy / "src/migrations"
    number = next_number(migrations)

    written = alembic(copy, "revision", "--autogenerate", "-m", "Posts, and their authors' names")

    assert written.returncode == 0, written.stdout + written.stderr
    path = newest(migrations)
    assert re.fullmatch(rf"\d{{8}}_{number}_posts_and_their_authors_names\.py", path.name)
    lines = path.read_text().splitlines()
    assert lines[0] == '"""Posts, and their authors\' names'
    assert f'revision: str = "{number}"' in lines
    for check in (["ruff", "format", "--check"], ["ruff", "check"], ["mypy", "--no-incremental"]):
        done = subprocess.run([str(BIN / check[0]), *check[1:], str(path)], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert alembic(copy, "upgrade", "head").returncode == 0
    again = alembic(copy, "revision", "--autogenerate", "-m", "again")
    assert (again.returncode, newest(migrations)) == (0, path)
    assert "Nothing to write" in again.stdout
    assert alembic(copy, "downgrade", "-1").returncode == 0


def test_a_number_of_ones_own_stays(project: Project) -> None:
    script = command.revision(project.config, "mine", rev_id="2026a")
    assert not isinstance(script, list)
    assert script is not None
    assert script.revision == "2026a"


def test_an_empty_migration_is_numbered_without_a_database(
    project: Project, monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    done = alembic(copy, "revision", "-m", "by hand", POSTGRES_PORT="1")
    assert done.returncode == 0, done.stdout + done.stderr
    path = newest(copy / "src/migrations")
    assert path.name.endswith(f"_{next_number(project.folder)}_by_hand.py")
    assert path.read_text().endswith("def downgrade() -> None:\n    pass\n")


def test_a_message_without_a_word_gives_a_name_of_its_own(copy: Path) -> None:
    done = alembic(copy, "revision", "-m", "...")
    assert done.returncode == 0, done.stdout + done.stderr
    assert newest(copy / "src/migrations").name.endswith("_migration.py")


@pytest.mark.parametrize("message", ["", "  "])
def test_a_message_that_says_nothing_is_refused(project: Project, message: str) -> None:
    with pytest.raises(CommandError, match="Say in words what the migration does"):
        command.revision(project.config, message, autogenerate=True)


def test_no_message_is_refused(copy: Path) -> None:
    done = alembic(copy, "revision", "--autogenerate")
    assert done.returncode != 0
    assert "Say in words what the migration does" in done.stdout + done.stderr
    assert alembic(copy, "check").returncode == 0


@pytest.mark.parametrize(
    "message",
    [
        'It\'s """quoted""" and ends with "',
        "back\\slash \\N{none} \\",
        "two\nlines\r\n\tand a tab",
        "äöü 日本語 – ’",
        "${a} <%b%> %(c)s {d} % e",
        "a very long one " * 20,
        "x" * 300,
    ],
)
def test_a_message_may_be_anything(project: Project, message: str) -> None:
    project.run("revision", message)
    path = newest(project.folder)
    compile(path.read_text(), path.name, "exec")
    pyproject = ["--config", str(ROOT / "pyproject.toml"), "--ignore", "E501,RUF002", str(path)]
    subprocess.run([str(BIN / "ruff"), "check", *pyproject], check=True)
    project.run("upgrade", "head")
    project.run("downgrade", "-1")


@pytest.mark.parametrize("message", ["add $5 `id` \"x\" 'y' \\ %", "-x", "--sql"])
def test_make_passes_the_message_on_as_it_is(tmp_path: Path, message: str) -> None:
    program = tmp_path / "bin" / "alembic"
    program.parent.mkdir()
    program.write_text(f"#!{BIN / 'python'}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    given = [f"m={message}", f"BIN={os.path.relpath(program.parent, ROOT)}", "PYTHON=true"]
    done = subprocess.run(["make", "-s", "migration", *given], cwd=ROOT, capture_output=True, text=True, check=True)
    arguments = json.loads(done.stdout.splitlines()[-1])
    assert arguments == ["revision", "--autogenerate", f"--message={message}"]


def test_make_wants_a_message() -> None:
    done = subprocess.run(["make", "-s", "migration", "PYTHON=true"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'make migration m="add colour"' in done.stderr


def test_two_migrations_of_the_same_number_are_refused(project: Project) -> None:
    number = next_number(project.folder)
    project.run("revision", "mine")
    mine = newest(project.folder)
    theirs = mine.with_name(mine.name.replace("mine", "theirs"))
    shutil.copy(mine, theirs)
    for run in (("upgrade", "head"), ("revision", "another")):
        with pytest.raises(CommandError, match=f"2 migrations have the number {number}: {mine.name}, {theirs.name}"):
            project.run(*run)


@pytest.mark.filterwarnings("ignore:Revision 0:UserWarning")
def test_two_newest_migrations_are_refused(project: Project) -> None:
    project.run("revision", "mine")
    project.run("upgrade", "head")
    mine = newest(project.folder)
    number = mine.name.split("_")[1]
    other = mine.with_name(mine.name.replace(number, "9000").replace("mine", "theirs"))
    other.write_text(mine.read_text().replace(f'"{number}"', '"9000"'))
    for run in (("upgrade", "head"), ("revision", "another"), ("check",)):
        with pytest.raises(
            CommandError, match=f"2 migrations are the newest: {mine.name}, {other.name}.*down_revision"
        ):
            project.run(*run)
    project.run("upgrade", "heads")
    command.merge(project.config, "heads", "merged", rev_id="9001")
    project.run("upgrade", "head")


def test_numbers_follow_the_highest_one(project: Project) -> None:
    command.revision(project.config, "mine", rev_id="0099")
    command.revision(project.config, "with a random one", rev_id="3f2a77c0d1e9")
    project.run("revision", "next")
    assert newest(project.folder).name.endswith("_0100_next.py")
