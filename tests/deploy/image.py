"""The image without Docker: its files as the Dockerfile copies them, its environment, its commands."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.files import DOCKERFILE
from tests.processes import BIN, ROOT

EVERYWHERE = "0.0.0.0"  # noqa: S104 -- what containers listen on, to be replaced


@dataclass(frozen=True, slots=True)
class Image:
    """The image's last stage.

    Attributes:
        workdir: the folder that commands run in.
        environment: what ENV sets, with the folder's paths.
        command: CMD.
        health_check: HEALTHCHECK's command.
        user: USER.
    """

    workdir: Path
    environment: dict[str, str]
    command: list[str]
    health_check: list[str]
    user: str


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of the last stage, with their arguments in one line."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE))
    lines = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    last = max(number for number, (name, _) in enumerate(lines) if name == "FROM")
    return [(name, argument) for name, argument in lines[last:]]


def image_in(folder: Path, dockerfile: str | None = None) -> Image:
    """Lays the image out in a folder that stands for its root."""
    found = instructions(dockerfile or DOCKERFILE.read_text())
    every = dict(found)
    workdir = folder / every["WORKDIR"].lstrip("/")
    workdir.mkdir(parents=True, exist_ok=True)
    for name, argument in found:
        if name == "COPY" and not argument.startswith("--from="):
            source, target = argument.split()
            shutil.copytree(ROOT / source, workdir / target, ignore=_left_out(), dirs_exist_ok=True)
    environment: dict[str, str] = {}
    for name, argument in found:
        if name == "ENV":
            environment |= dict(word.split("=", 1) for word in shlex.split(argument))
    del environment["PATH"]
    environment = {key: value.replace(every["WORKDIR"], str(workdir)) for key, value in environment.items()}
    return Image(
        workdir,
        environment | {"PATH": f"{BIN}:/usr/bin:/bin"},
        json.loads(every["CMD"]),
        json.loads(every["HEALTHCHECK"].partition("CMD ")[2]),
        every["USER"],
    )


def _left_out() -> Callable[[str, list[str]], set[str]]:
    """What .dockerignore leaves out of the folders that it lets in, by name."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return shutil.ignore_patterns(*(Path(line).name for line in lines if "/" in line))
