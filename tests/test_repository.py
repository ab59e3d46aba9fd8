"""What must hold of the files themselves."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

ROOT = Path(__file__).parents[1]
PIN = r"^([\w.-]+)(?:\[\w+\])?==(\S+)"
LOCKS = ("requirements.txt", "requirements-dev.txt")
EXTRA_LOCKS = ("requirements-tracing.txt", "requirements-s3.txt")


def committed_files() -> list[Path]:
    """The files of the working tree that git tracks or would track; all but the hidden ones outside of git."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.splitlines() or [str(path) for path in (ROOT / "src").rglob("*")]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_no_file_names_a_package_registry() -> None:
    hosts = [host.encode() for host in (PyPI.netloc, PyPI.file_storage_domain)]
    assert all(hosts)
    found = [path.name for path in committed_files() for host in hosts if host in path.read_bytes()]
    assert found == []


def test_no_lock_that_names_a_registry_is_committed() -> None:
    names = {path.name for path in committed_files()}
    assert not names & {"uv.lock", "pylock.toml", "poetry.lock", "Pipfile.lock", "package-lock.json"}


@pytest.mark.parametrize("name", [*LOCKS, *EXTRA_LOCKS])
def test_locks_have_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", re.sub(r"^\s+--hash=sha256:[0-9a-f]{64}( \\)?$", "", text, flags=re.M), re.M)
    pinned = re.findall(r"^[\w.\[\]-]+==", text, re.M)
    assert len(pinned) > 40
    for requirement in re.split(r"\n(?=\w)", text)[1:]:
        assert "--hash=sha256:" in requirement


def test_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime, dev = ((ROOT / name).read_text() for name in LOCKS)
    for lock, wanted in (
        (runtime, project["project"]["dependencies"]),
        (dev, project["project"]["dependencies"] + project["dependency-groups"]["dev"]),
    ):
        for requirement in wanted:
            package = re.split(r"[\[<>=; ]", requirement)[0]
            assert re.search(rf"^{re.escape(package)}(\[\w+\])?==", lock, re.M), package
    assert "pytest==" not in runtime
    # What runs in production was tested in that very version.
    versions = dict(re.findall(PIN, dev, re.M))
    extras = "".join((ROOT / name).read_text() for name in EXTRA_LOCKS)
    for package, version in re.findall(PIN, runtime + extras, re.M):
        assert versions[package] == version


def test_secrets_and_data_are_ignored() -> None:
    for name in ("src/.env", ".data/postgres/PG_VERSION", ".venv/bin/python", "src/app/logs/app.log"):
        ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert ignored.returncode == 0, name
