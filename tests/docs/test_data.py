"""Blocks that need nothing to run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.config import Settings
from tests.docs import data
from tests.docs.blocks import KINDS, Block, all_blocks, kind_of


def each_of(kind: str, check: Callable[..., None], *more: object) -> None:
    """Checks all blocks of a kind; what is raised says which one it was."""
    for block in all_blocks(kind):
        try:
            check(block, *more)
        except Exception as error:
            error.add_note(f"{block.place}: this block")
            raise


def test_every_block_is_somebodys() -> None:
    """See CONTRIBUTING.md for how a new one gets somebody."""
    for block in all_blocks():
        kind_of(block)


def test_every_kind_has_a_test() -> None:
    """But for output, which is looked at with the block that prints it."""
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    tried = re.findall(r'(?:all_blocks\(|each_of\(|^        \()"(\w+)"', tests, re.MULTILINE)
    assert set(tried) >= set(KINDS) - {"output"}


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("data", data.read_data),
        ("tree", data.find_paths),
        ("redis", data.read_redis_addresses),
        ("printed", data.find_target),
    ],
)
def test_what_only_is_read(kind: str, check: Callable[[Block], None]) -> None:
    each_of(kind, check)


def test_settings_are_taken(settings: Settings, tmp_path: Path) -> None:
    each_of("settings", data.apply_settings, tmp_path)


def test_nginx_takes_it(tmp_path: Path) -> None:
    each_of("nginx", data.try_nginx, tmp_path)
