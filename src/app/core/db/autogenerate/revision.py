"""Names, numbers and formats the file of a new migration."""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from alembic.autogenerate.api import RevisionContext
from alembic.config import Config
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory, write_hooks
from alembic.util import CommandError
from alembic.util.messaging import msg

_PROJECT = Path(__file__).parents[5]
_NUMBER = re.compile(r"\d{4,6}")
_REVISION = re.compile(r"""^revision\b[^=\n]*=\s*["']([^"']+)["']""", re.MULTILINE)


def refuse_same_number(scripts: ScriptDirectory) -> None:
    """Raise CommandError when two files have the same revision: Alembic would run one of them only."""
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for folder in scripts._version_locations for path in Path(folder).glob("*.py")):
        if revision := _REVISION.search(path.read_text(encoding="utf-8")):
            files[revision[1]].append(path.name)
    for number, names in files.items():
        if len(names) > 1:
            raise CommandError(
                f"{len(names)} migrations have the number {number}: {', '.join(names)}. Give the one that is not "
                f'shared yet the next free number, in its name and in "revision", and set its "down_revision" to '
                f'"{number}".'
            )


def refuse_several_heads(scripts: ScriptDirectory) -> None:
    """Raise CommandError when more than one migration is the newest."""
    heads = sorted(script.path for script in scripts.get_revisions("heads") if script is not None)
    if len(heads) > 1:
        names = [Path(path).name for path in heads]
        raise CommandError(
            f'{len(heads)} migrations are the newest: {", ".join(names)}. Set the "down_revision" of the one that is '
            'not shared yet to the revision of the other, or join them: alembic merge heads -m "merge".'
        )


def number(context: RevisionContext, scripts: ScriptDirectory) -> None:
    """Give the new migration the number after the highest one, unless the command names a revision."""
    if context.command_args["head"] == "head":
        refuse_several_heads(scripts)
    if context.command_args["rev_id"] is None:
        numbers = [int(script.revision) for script in scripts.walk_revisions() if _NUMBER.fullmatch(script.revision)]
        context.generated_revisions[-1].rev_id = f"{max(numbers, default=0) + 1:04d}"
    message = context.command_args["message"]
    if message is not None and not re.search(r"\w", message):  # As in -m "...", which the documents have.
        context.generated_revisions[-1].message = "migration"


def refuse_no_message(context: RevisionContext, config: Config) -> None:
    """Raise CommandError when the new migration has no name. `alembic check`, which writes none, has none to give."""
    message = context.command_args["message"]
    is_absent = message is None and hasattr(config.cmd_opts, "message")
    if is_absent or (message is not None and not message.strip()):
        raise CommandError('Say in words what the migration does: -m "add colour".')


def skip_if_empty(context: MigrationContext, revision: Any, directives: list[MigrationScript]) -> None:
    """Write no migration when autogenerate found nothing. Passed to Alembic as `process_revision_directives`."""
    arguments = directives[0]
    # `alembic check` has no message, and looks at the directive afterwards.
    if arguments.message is not None and arguments.upgrade_ops is not None and arguments.upgrade_ops.is_empty():
        directives.clear()
        msg("Nothing to write: the database has what the models describe.")


@write_hooks.register("slipway_ruff")
def format_file(path: str, options: dict[str, Any]) -> None:
    """Format the new file as the project's other files are, and remove imports that it does not use."""
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}") or shutil.which("ruff")
    if ruff is None:
        msg("ruff is not installed: the file is not formatted.")
        return
    for command in (["check", "--fix", "--silent"], ["format", "--silent"]):
        subprocess.run([ruff, *command, path], cwd=_PROJECT, check=False)  # noqa: S603 -- its own tool on its own file
