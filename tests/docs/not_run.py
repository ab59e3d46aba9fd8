"""What a document may tell people to run, and no test runs: why not, and what is looked at instead."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

# By the command's first words. Each has a check below, or a test of its own that is named here.
REASONS = {
    "docker": "there is no Docker engine in the tests; files, services and options are looked at",
    "kubectl": "there is no cluster in the tests; files and options are looked at",
    "pip": "it would load every package again; the file it names is looked at",
    "venv": "it is made by `make install`, which the tests run in",
    "make": "takes minutes, or runs until it is stopped: `make -n` has to know the target. tests/e2e/test_make_run.py "
    "runs `make run`, tests/scripts those of the others' parts that are no tests themselves",
}

_COMPOSE_OPTIONS = {
    "up": {"-d", "--build", "--no-deps", "--wait"},
    "run": {"--rm"},
    "build": set[str](),
    "down": set[str](),
    "exec": {"-T"},
    "logs": {"-f", "--since"},
    "pull": set[str](),
}
_WITH_A_VALUE = {"-f", "--env-file", "-n", "-l", "-k", "--for", "--timeout", "--since"}
_KUBECTL = {"apply", "delete", "get", "logs", "rollout", "scale", "wait"}
_KUBECTL_OPTIONS = {"-k", "-l", "-n", "-f", "--for", "--timeout", "--ignore-not-found"}


def reason(words: list[str]) -> str | None:
    """Which of REASONS a command has, if it is not to be run."""
    if words[0] in {"docker", "kubectl"}:
        return words[0]
    if Path(words[0]).name == "pip" or words[:3] == ["python3", "-m", "pip"]:
        return "pip"
    if words[:3] == ["python3", "-m", "venv"]:
        return "venv"
    return None


def look_at(words: list[str], folder: Path) -> None:
    """What can be seen without running it. Raises: AssertionError."""
    checks: dict[str, Callable[[list[str], Path], None]] = {"docker": _docker, "kubectl": _kubectl, "pip": _pip}
    if (check := checks.get(reason(words) or "")) is not None:
        check(words, folder)


def _docker(words: list[str], folder: Path) -> None:
    assert words[1] == "compose", words
    options, rest = _parsed(words[2:])
    file = folder / options.get("-f", "docker-compose.yml")
    assert set(options) <= {"-f", "--env-file"}, options
    if name := options.get("--env-file"):
        assert (folder / name).is_file() or (folder / "deploy" / "env.prod.example").is_file(), name
    command, *more = rest
    assert command in _COMPOSE_OPTIONS, command
    known = services(file)
    while more and more[0].startswith("-"):
        option = more.pop(0)
        assert option in _COMPOSE_OPTIONS[command], option
        if option in _WITH_A_VALUE and option != "-f":
            more.pop(0)
    if command in {"run", "exec"}:
        service, *inside = more
        assert service in known, service
        if inside[:2] == ["python", "-m"]:
            assert (folder / f"{inside[2].replace('.', '/')}.py").is_file(), inside
    else:
        assert set(more) <= set(known), more


def services(file: Path) -> dict[str, Any]:
    """The services of a compose file. Raises: AssertionError when there is no such file."""
    assert file.is_file(), file
    found: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return found


def _kubectl(words: list[str], folder: Path) -> None:
    assert words[1] in _KUBECTL, words[1]
    names = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
    assert names <= _KUBECTL_OPTIONS, names
    if "-k" in words:
        assert (folder / words[words.index("-k") + 1] / "kustomization.yaml").is_file(), words


def _pip(words: list[str], folder: Path) -> None:
    assert "--require-hashes" in words, "what is not locked is not to be installed"
    assert (folder / words[words.index("-r") + 1]).is_file(), words


def _parsed(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options with a value that stand first, and what follows them."""
    options, rest = dict[str, str](), list(words)
    while rest and rest[0] in {"-f", "--env-file"}:
        options[rest[0]] = rest[1]
        rest = rest[2:]
    return options, rest


def split(line: str) -> list[list[str]]:
    """The commands of a line of a shell, which are joined by `&&`, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]
