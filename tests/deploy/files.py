"""Reads the deployment's files, and changes them as the founding document tells people to."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.processes import ROOT

COMPOSE = ROOT / "docker-compose.yml"
COMPOSE_PROD = ROOT / "docker-compose.prod.yml"
DOCKERFILE = ROOT / "Dockerfile"
DEFAULT_CONF = ROOT / "default.conf"
NGINX = ROOT / "deploy" / "nginx"
KUBERNETES = ROOT / "deploy" / "kubernetes"

# The switches, by what stands before them in the file.
WITH_NGINX = "uncomment to run with nginx"
ONE_SERVER = "# ---------------- Running With One Server"
MANY_SERVERS = "# ---------------- To Run with Multiple Servers, Uncomment below"


def services(compose: Path | str) -> dict[str, Any]:
    """The services of a compose file, or of its text."""
    found: dict[str, Any] = yaml.safe_load(compose.read_text() if isinstance(compose, Path) else compose)["services"]
    return found


def manifests(path: Path) -> list[dict[str, Any]]:
    """The objects of a Kubernetes file."""
    return list(yaml.safe_load_all(path.read_text()))


def words_of(command: str | list[str], values: Mapping[str, str] | None = None) -> list[str]:
    """A command as compose would run it: `${NAME}` is one of the values, and `$$` a dollar."""
    words = shlex.split(command) if isinstance(command, str) else command
    return [interpolated(word, values or {}) for word in words]


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """What compose makes of a text. Raises: KeyError for a value that it needs and does not get."""
    named = re.sub(
        r"(?<!\$)\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}",
        lambda found: values.get(found[1], found[2]) if found[2] is not None else values[found[1]],
        text,
    )
    return named.replace("$$", "$")


def uncommented(text: str, marker: str) -> str:
    """The text with the block of comments after the marker's line no longer commented out."""
    lines = text.splitlines(keepends=True)
    first = _line_with(lines, marker) + 1
    for number in range(first, len(lines)):
        if not re.match(r"\s*#", lines[number]):
            break
        lines[number] = re.sub(r"# ?", "", lines[number], count=1)
    return "".join(lines)


def commented(text: str, *beginnings: str) -> str:
    """The text with every line that begins with one of these, whatever its indentation, commented out."""
    pattern = "|".join(re.escape(beginning) for beginning in beginnings)
    return re.sub(rf"^(\s*)((?:{pattern}).*)$", r"\1# \2", text, flags=re.MULTILINE)


def with_lines_uncommented(text: str, *beginnings: str) -> str:
    """The text with every commented line that begins with one of these no longer commented out."""
    pattern = "|".join(re.escape(beginning) for beginning in beginnings)
    return re.sub(rf"^(\s*)# ((?:{pattern}).*)$", r"\1\2", text, flags=re.MULTILINE)


def many_servers(default_conf: str) -> str:
    """`default.conf` with its first form commented out and its second one not."""
    shared, one, many = re.split(rf"(?=^{ONE_SERVER}|^{MANY_SERVERS})", default_conf, flags=re.MULTILINE)
    heading, _, block = one.partition("\n")
    return (
        shared + heading + "\n" + re.sub(r"^", "# ", block, flags=re.MULTILINE) + "\n" + uncommented(many, MANY_SERVERS)
    )


def _line_with(lines: list[str], marker: str) -> int:
    (number,) = (number for number, line in enumerate(lines) if marker in line)
    return number
