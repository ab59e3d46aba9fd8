"""The commands that the documents tell people to run, in a copy of the project."""

import os
from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.db.models import utc_now
from tests.docs.blocks import Block, all_blocks
from tests.docs.commands import Terminal, lines_of, make
from tests.docs.forms import refuse_other_lines


@pytest.mark.parametrize("block", all_blocks("commands"), ids=lambda block: block.place)
def test_commands(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, block: Block) -> None:
    if "signing_keys" in block.text:
        monkeypatch.setenv("ENV_FILE", str(_file_with_two_keys(tmp_path)))
        monkeypatch.delenv("SECRET_KEY")
    printed = terminal.run(block)
    for shown in block.output:
        refuse_other_lines(shown.text, printed)


@pytest.mark.parametrize("block", all_blocks("make"), ids=lambda block: block.place)
def test_make(settings: Settings, copy: Path, known_lines: set[str], block: Block) -> None:
    for line in lines_of(block.text):
        if line not in known_lines:
            make(line, copy)
            known_lines.add(line)


def _file_with_two_keys(folder: Path) -> Path:
    file = folder / "keys.env"
    until = utc_now().replace(year=utc_now().year + 1, microsecond=0).isoformat()
    file.write_text(f'SECRET_KEY="{os.urandom(32).hex()}"\nOTHER_SECRET_KEYS="{os.urandom(32).hex()}@{until}"\n')
    return file
