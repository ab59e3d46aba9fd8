"""`make install` on a `.venv` that is absent, half-made, elsewhere's, or being made by somebody else."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import install

from ..processes import ROOT
from .pids import wait_until

WAITS = "Another make is installing into .venv: waiting for it."
INSTALLS = "Installing the locked dependencies into .venv ..."


class Make:
    """One `make install` in a project, whose output goes to a file of its own."""

    def __init__(self, project: Path, name: str, **shell: str) -> None:
        """Start it, with these variables of a shell."""
        self._log = project.parent / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["make", "--no-print-directory", "install"],
                cwd=project,
                env=os.environ | {"PYTHON": sys.executable} | shell,
                stdout=log,
                stderr=log,
            )

    @property
    def output(self) -> list[str]:
        return self._log.read_text().splitlines()

    def finish(self) -> list[str]:
        assert self._process.wait(120) == 0, self.output
        return self.output


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """All that `make install` needs, with nothing in its lock file: no test asks a registry."""
    project = tmp_path / "first place"
    (project / "src" / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", project)
    shutil.copy(ROOT / "src" / "scripts" / "install.py", project / "src" / "scripts")
    (project / "requirements-dev.txt").write_text("# nothing\n")
    return project


def test_it_mends_half_of_a_venv_and_once_for_all(project: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=project, check=True)
    with (project / "requirements-dev.txt").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [Make(project, name) for name in ("one", "two")]
        wait_until(lambda: all(WAITS in make.output for make in both))
    said = [make.finish() for make in both]
    assert sorted(INSTALLS in lines for lines in said) == [False, True]
    subprocess.run([project / ".venv" / "bin" / "pip", "--version"], capture_output=True, check=True)
    assert Make(project, "again").finish() == []
    (project / "requirements-dev.txt").write_text("# something else\n")
    assert Make(project, "changed").finish()[:1] == [INSTALLS]


def test_no_variable_of_the_shell_sends_it_elsewhere(project: Path) -> None:
    elsewhere = str(project.parent / "elsewhere")
    of_pip = dict.fromkeys(("PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_DRY_RUN", "PIP_ISOLATED", "PIP_NO_BINARY"), "1")
    of_pip |= dict.fromkeys(("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT", "PIP_PYTHON"), elsewhere)
    of_python = {"PYTHONSAFEPATH": "1", "PYTHONPATH": elsewhere, "PYTHONHOME": elsewhere, "PYTHONWARNINGS": "error"}
    said = Make(project, "one", VIRTUAL_ENV=elsewhere, TMPDIR=elsewhere, **of_pip, **of_python).finish()
    assert said == [INSTALLS]
    assert not Path(elsewhere).exists()


def test_what_says_where_the_registry_is_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_CERT", "HTTPS_PROXY", "PIP_TARGET", "PYTHONPATH"):
        monkeypatch.setenv(name, "x")
    kept = install._environment()
    assert [kept.get(name) for name in ("PIP_INDEX_URL", "PIP_CERT", "HTTPS_PROXY")] == ["x"] * 3
    assert not {"PIP_TARGET", "PYTHONPATH"} & kept.keys()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What `install` would run for a project in `tmp_path`."""
    commands: list[tuple[str, ...]] = []

    def run(_: int, *command: str) -> None:
        (tmp_path / ".venv").mkdir(exist_ok=True)
        commands.append(command)

    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(install, "DONE", tmp_path / ".venv" / ".installed")
    monkeypatch.setattr(install, "_run", run)
    return commands


def a_venv(folder: Path, made_in: Path) -> None:
    """As much of one as counts, in `folder`, where it was moved to."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "pip").write_text(f"#!{made_in}/bin/python3\n")


def test_a_venv_that_was_made_here_is_kept(tmp_path: Path, commands: list[tuple[str, ...]]) -> None:
    a_venv(tmp_path / ".venv", made_in=tmp_path / ".venv")
    install.main()
    assert [command[3] for command in commands] == ["pip"]
    install.main()
    assert len(commands) == 1


def test_a_venv_that_was_moved_is_made_anew(
    tmp_path: Path, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_venv(tmp_path / ".venv", made_in=tmp_path / "elsewhere" / ".venv")
    monkeypatch.setattr(install, "ROOT", tmp_path / "elsewhere")
    install.DONE.write_bytes(install._wanted())
    monkeypatch.setattr(install, "ROOT", tmp_path)
    install.main()
    assert [command[3] for command in commands] == ["venv", "pip"]
    assert "--clear" in commands[0]


def test_a_link_to_another_projects_venv_is_removed_and_not_cleared(
    tmp_path: Path, commands: list[tuple[str, ...]]
) -> None:
    others = tmp_path / "other" / ".venv"
    a_venv(others, made_in=others)
    (tmp_path / ".venv").symlink_to(others)
    install.main()
    assert [command[3] for command in commands] == ["venv", "pip"]
    assert not (tmp_path / ".venv").is_symlink()
    assert (others / "bin" / "pip").exists()


def test_an_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit) as stopped:
        install._check_version()
    monkeypatch.undo()
    assert str(stopped.value.code).startswith("Slipway needs Python 3.11 or newer, ")
    assert str(stopped.value.code).endswith(": try make PYTHON=python3.12")


def test_a_project_that_is_somebody_elses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "DONE", tmp_path / "missing")
    monkeypatch.setattr(install, "LOCK", tmp_path)  # Like a file that root, too, may not write to.
    with pytest.raises(SystemExit, match=r"must be writable for this user"):
        install.main()
