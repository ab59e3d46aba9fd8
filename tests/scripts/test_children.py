"""The children of `make run`: watched, started again, and never left behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import children as module
from scripts import reaper
from scripts.changes import Changes
from scripts.children import Children
from scripts.embedded import ServiceError
from scripts.merged_log import MergedLog

from .pids import is_alive, wait_until

STAYS = ("sh", "-c", "echo here; exec sleep 600")
# Ends when told to, but not before there is a file `go`.
IS_SLOW = (
    "sh",
    "-c",
    'trap "until [ -e go ]; do sleep 0.05; done; exit" TERM; echo here; while :; do sleep 0.05; done',
)
IS_DEAF = ("sh", "-c", 'trap "" TERM; echo here; while :; do sleep 0.05; done')


@pytest.fixture
def log() -> Iterator[MergedLog]:
    with MergedLog() as log:
        yield log


@pytest.fixture
def children(tmp_path: Path, log: MergedLog) -> Iterator[Children]:
    with Children(tmp_path, log) as children:
        yield children


class Screen:
    """What has been printed until now."""

    def __init__(self, log: MergedLog, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing."""
        self._log, self._capsys, self._text = log, capsys, ""

    def text(self) -> str:
        self._log.print_lines(0.05)
        self._text += self._capsys.readouterr().out
        return self._text

    def wait_for(self, line: str, times: int = 1) -> None:
        wait_until(lambda: self.text().count(line) >= times)


@pytest.fixture
def screen(log: MergedLog, capsys: pytest.CaptureFixture[str]) -> Screen:
    return Screen(log, capsys)


def check_until(children: Children, condition: Callable[[], bool], *, is_up: bool = True) -> None:
    """What `make run` does all the time, until the condition holds."""

    def checked() -> bool:
        children.check(is_up=is_up)
        return condition()

    wait_until(checked)


def pid_of(children: Children, name: str) -> int:
    return children._running[name].process.pid


def test_an_end_during_the_first_start_is_an_error(children: Children, screen: Screen) -> None:
    children.start("worker", "sh", "-c", "echo last words; exit 3")
    with pytest.raises(ServiceError, match=r"^The worker process has ended by itself with code 3\.$"):
        check_until(children, lambda: False, is_up=False)
    assert "worker | last words\n" in screen.text()


def test_a_child_that_was_up_and_is_killed_starts_again(
    children: Children, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEADY_SECONDS", 0)
    children.start("api", *STAYS)
    screen.wait_for("api    | here\n")
    killed = pid_of(children, "api")
    os.kill(killed, signal.SIGKILL)
    check_until(children, lambda: pid_of(children, "api") != killed)
    screen.wait_for("api    | here\n", times=2)
    assert "The api process has ended by itself by signal 9. It starts again now.\n" in screen.text()


def test_a_child_that_ends_at_once_waits_for_a_change(
    children: Children, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEADY_SECONDS", 600)
    children.start("api", "sh", "-c", "echo here; exit 1")
    children.start("worker", *STAYS)
    check_until(children, lambda: "api" not in children._running)
    line = "The api process has ended by itself with code 1. It starts again after the next change.\n"
    assert screen.text().count(line) == 1
    for _ in range(3):
        children.check(is_up=True)
    assert screen.text().count("api    | here\n") == 1
    children.restart()
    screen.wait_for("api    | here\n", times=2)


def test_a_slow_end_holds_nobody_else_up(children: Children, screen: Screen, tmp_path: Path) -> None:
    children.start("worker", *IS_SLOW)
    children.start("api", *STAYS)
    screen.wait_for("worker | here\n")
    screen.wait_for("api    | here\n")
    slow, quick = pid_of(children, "worker"), pid_of(children, "api")
    children.restart()
    children.restart()  # Another file was saved.
    check_until(children, lambda: pid_of(children, "api") != quick)
    assert pid_of(children, "worker") == slow
    assert is_alive(slow)
    (tmp_path / "go").touch()
    check_until(children, lambda: pid_of(children, "worker") != slow)
    assert "by itself" not in screen.text()


def test_a_child_that_does_not_end_is_killed_after_its_grace(
    children: Children, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    children.start("worker", *IS_DEAF)
    screen.wait_for("worker | here\n")
    deaf = pid_of(children, "worker")
    children.restart()
    check_until(children, lambda: pid_of(children, "worker") != deaf)
    assert not is_alive(deaf)
    children._running["worker"].signal(signal.SIGKILL)  # Its successor, which the fixture would wait for.


def test_what_a_child_leaves_behind_goes_with_it(
    children: Children, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    children.start("api", "sh", "-c", "sleep 600 & echo $!")
    wait_until(lambda: "api    | " in screen.text())
    left = int(screen.text().partition("api    | ")[2])
    check_until(children, lambda: "api" not in children._running)
    wait_until(lambda: not is_alive(left))


def test_a_killed_reaper_is_an_error(children: Children) -> None:
    children.start("api", *STAYS)
    children._reaper.kill()
    children._reaper.wait()
    with pytest.raises(ServiceError, match="after a kill -9 was itself killed: start again"):
        children.check(is_up=True)


def test_the_reaper_ends_groups_and_leaves_those_alone_that_have_ended_before() -> None:
    first, second = (subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2))
    try:
        lines = f"{first.pid}\n{second.pid}\n-{first.pid}\n"  # By now, the first number is somebody else's.
        threading.Thread(target=second.wait).start()  # Or it would stay as a zombie, and the reaper wait for it.
        subprocess.run([sys.executable, reaper.__file__], input=lines, text=True, check=True)
        assert second.wait() == -signal.SIGTERM
        assert first.poll() is None
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_changed_python_files_are_noticed_and_no_others(tmp_path: Path) -> None:
    source, changed = tmp_path / "a.py", []

    def change() -> bool:
        (tmp_path / "a.txt").write_text("changed")
        source.write_text("changed")
        changed.extend(changes.take())
        return bool(changed)

    with Changes(tmp_path) as changes:
        wait_until(change)
    assert set(changed) == {str(source)}


def test_a_folder_that_cannot_be_watched_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Changes(tmp_path / "missing") as changes:
        wait_until(lambda: not changes._thread.is_alive())
    assert f"Changes in {tmp_path / 'missing'} are not noticed: " in capsys.readouterr().out
