"""The fenced code blocks of README.md, of the pages beside it and of docs/, and by whom each is tried.

CONTRIBUTING.md tells writers the scheme.

A comment right above a block names its kind and, after it, what that kind wants to know:

    <!-- test: commands exit=1 -->

Without a comment the language decides, where that is enough (`KIND_OF_LANGUAGE`). A block that nobody tries is an
error: `kind_of` raises.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

from tests.processes import ROOT

# Another folder with README.md and docs/ in it, for the test that breaks a copy.
FOLDER = Path(os.environ.get("DOCUMENTS", ROOT))

KINDS = {
    "api": "a session in bash, with a running API and a worker",
    "answer": "JSON with the keys of what the API answers to the request that the comment names",
    "headers": "headers in the form that the API gives them",
    "commands": "commands of this project, in a copy of it",
    "make": "make's targets: quick ones are run, of the others it is asked whether they exist",
    "python": "Python, in the surroundings that the comment names (tests/docs/surroundings.py)",
    "settings": "NAME=value: settings of the app, which takes them",
    "data": "JSON, YAML, TOML or INI that can be read",
    "nginx": "part of nginx's configuration, which `nginx -t` takes",
    "tree": "paths of this project, one a line",
    "redis": "addresses of Redis/Valkey, one a line",
    "output": "what the block above it printed, in this form",
    "printed": "what `make NAME` prints and takes minutes for; the comment has the name",
}
KIND_OF_LANGUAGE = {
    "json": "data",
    "yaml": "data",
    "toml": "data",
    "ini": "data",
    "env": "settings",
    "nginx": "nginx",
}
_BLOCK = re.compile(
    r"(?:^[ ]*<!--\ test:\ (?P<comment>[^\n]*?)\ -->\n)?"
    r"^(?P<indent>[ ]*)(?P<fence>```+|~~~+)[ ]*(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


class Unclaimed(AssertionError):  # noqa: N818 -- what a test has found
    """No test runs this block."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: its document and the line of its fence, such as `docs/jobs.md:11`.
        language: the word after the fence, or nothing.
        text: what is between the fences, without their indentation.
        comment: the words of the comment above it.
        output: the blocks below it that show what it prints.
    """

    place: str
    language: str
    text: str
    comment: tuple[str, ...] = ()
    output: list["Block"] = field(default_factory=list, compare=False)

    @property
    def rest(self) -> str:
        """What the comment says after the kind."""
        return " ".join(self.comment[1:])


def documents(folder: Path = FOLDER) -> list[Path]:
    """README.md and those beside it, and all pages of docs/."""
    return [*sorted(folder.glob("*.md")), *sorted((folder / "docs").rglob("*.md"))]


def blocks_of(document: Path, folder: Path = FOLDER) -> list[Block]:
    """A document's blocks, in order; each block of output stands with the one above it as well."""
    text, found = document.read_text(), list[Block]()
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        place = f"{document.relative_to(folder)}:{line}"
        comment = tuple((match["comment"] or "").split())
        block = Block(place, match["language"].strip(), dedent(match["text"]), comment)
        if kind_or_none(block) == "output":
            above = next((other for other in reversed(found) if kind_or_none(other) != "output"), None)
            if above is None:
                raise Unclaimed(f"{place} is to be the output of a block above it, and there is none")
            above.output.append(block)
        found.append(block)
    return found


def all_blocks(*kinds: str) -> list[Block]:
    """The blocks of these kinds, or all that there are, of all documents."""
    found = [block for document in documents() for block in blocks_of(document)]
    return [block for block in found if not kinds or kind_or_none(block) in kinds]


def kind_or_none(block: Block) -> str | None:
    """The kind of a block, if it has one."""
    if block.comment:
        return block.comment[0] if block.comment[0] in KINDS else None
    commands = [line for line in block.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if block.language == "sh" and commands and all(line.startswith("make ") for line in commands):
        return "make"
    return KIND_OF_LANGUAGE.get(block.language)


def kind_of(block: Block) -> str:
    """The kind of a block. Raises: Unclaimed."""
    kind = kind_or_none(block)
    if kind is None:
        said = f"its comment names no kind: {block.comment[0]}" if block.comment else "it has no comment"
        raise Unclaimed(f"{block.place} ({block.language or 'no language'}): no test runs this block; {said}")
    return kind
