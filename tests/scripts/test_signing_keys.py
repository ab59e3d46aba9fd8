"""The command that changes the keys which sign tokens: what it does to the file, to tokens, and what it says."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from app.core.config import CryptSettings, SettingsError
from app.core.db.models import utc_now
from app.core.keyring import Keyring, kid_of
from app.core.security import (
    InvalidToken,
    create_access_token,
    create_refresh_token,
    decode_access_token,
    parse_refresh_token,
)
from scripts.signing_keys import Refused, main, sign_with
from tests.processes import ROOT

FIRST, SECOND, THIRD = "f1rst-" * 8, "sec0nd-" * 8, "th1rd-" * 8
USER = UUID("0b0f5c39-8f3f-4a53-9e0c-6f3f6f1f7a11")
LOGIN = UUID("7c9e6679-7425-40de-944b-e07fc1f90ae7")
SALT = b"0123456789abcdef"
PAST, FUTURE = "2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"

FILE = f"""# Ours, nämlich
APP_NAME = 'Slip "way"'   # not changed

  SECRET_KEY={FIRST}  # the key
# OTHER_SECRET_KEYS="commented"
OTHER_SECRET_KEYS='{SECOND}'
REFRESH_TOKEN_EXPIRE_DAYS=3
NOTE="two
  lines"
"""

Run = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file with a key that signs and another one, while the environment has none."""
    monkeypatch.delenv("SECRET_KEY")
    (tmp_path / ".env").write_text(FILE)
    return tmp_path / ".env"


@pytest.fixture
def run(file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Does a command and returns what it printed, in which there is never a key."""

    def run(*words: str) -> str:
        keys = secrets_of(file)
        main(words, file)
        said = "".join(capsys.readouterr())
        assert not [key for key in keys | secrets_of(file) if key[:8] in said]
        return said

    return run


def ring(file: Path) -> Keyring:
    return CryptSettings(_env_file=file).keyring


def secrets_of(file: Path) -> set[str]:
    return {key.secret for key in ring(file).by_kid.values()}


def with_keys(file: Path, signing: str, others: str) -> None:
    file.write_text(f'SECRET_KEY="{signing}"\nOTHER_SECRET_KEYS="{others}"\n')


def refusal(file: Path, *words: str) -> str:
    """The one line with which a command is refused, having changed nothing and named no key."""
    before = file.read_bytes()
    with pytest.raises(Refused) as stopped:
        main(words, file)
    line = str(stopped.value.code)
    assert len(line.splitlines()) == 1
    assert not [key for key in (FIRST, SECOND, THIRD) if key[:8] in line]
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return line


# ---- list ----


def test_list_says_what_each_key_does(file: Path, run: Run) -> None:
    with_keys(file, FIRST, f"{SECOND} {THIRD}@{FUTURE} {'expired-' * 6}@{PAST}")
    said = (
        f"{kid_of(FIRST)}  signs\n"
        f"{kid_of(SECOND)}  verifies\n"
        f"{kid_of(THIRD)}  verifies until {FUTURE}\n"
        f"{kid_of('expired-' * 6)}  expired {PAST}\n"
    )
    assert run("list") == run() == said


def test_list_shows_the_environment_s_keys_where_they_win(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_KEY", THIRD)
    main(["list"], file)
    assert capsys.readouterr().out == f"{kid_of(THIRD)}  signs\n{kid_of(SECOND)}  verifies\n"


# ---- add, sign-with, retire, rotate ----


def test_an_added_key_verifies_and_does_not_sign(file: Path, run: Run) -> None:
    said = run("add")

    first, second, added = ring(file).good(utc_now())
    assert (first.secret, second.secret) == (FIRST, SECOND)
    assert ring(file).signing == first
    assert re.fullmatch("[0-9a-f]{64}", added.secret)
    assert added.until is None
    assert added.kid in said
    assert f"sign-with {added.kid}" in said
    assert "only after a restart" in said
    assert said.count("\n") == 1


def test_sign_with_lets_a_key_sign_and_the_old_one_verify_until_its_last_token_has_expired(
    file: Path, run: Run
) -> None:
    before = utc_now()
    said = run("sign-with", kid_of(SECOND))

    [old] = ring(file).others
    assert ring(file).signing.secret == SECOND
    assert old.secret == FIRST
    assert old.until is not None
    assert before + timedelta(days=3) <= old.until <= utc_now() + timedelta(days=3, seconds=1)
    assert old.until.isoformat() in file.read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", old.until.isoformat())
    assert said == (
        f"Key {kid_of(SECOND)} signs, and {kid_of(FIRST)} verifies until {old.until.isoformat()}. "
        "Running servers read that only after a restart.\n"
    )


@pytest.mark.parametrize(("minutes", "life"), [(15, timedelta(days=3)), (14_400, timedelta(days=10))])
def test_the_moment_is_that_of_the_kind_of_token_that_lives_longer(file: Path, minutes: int, life: timedelta) -> None:
    # The settings' own bounds do not let an access token live longer; a project that changes them may.
    settings = CryptSettings(_env_file=file).model_copy(update={"ACCESS_TOKEN_EXPIRE_MINUTES": minutes})
    [old] = sign_with(settings.keyring, kid_of(SECOND), settings)[0].others
    assert old.until is not None
    assert abs(old.until - utc_now() - life) < timedelta(seconds=30)


def test_a_key_that_signs_again_has_no_moment_any_more(file: Path, run: Run) -> None:
    run("sign-with", kid_of(SECOND))
    run("sign-with", kid_of(FIRST))
    assert ring(file).signing.secret == FIRST
    assert ring(file).signing.until is None
    assert [key.secret for key in ring(file).others] == [SECOND]


def test_retiring_a_key_that_may_be_in_use_needs_a_word_more(file: Path, run: Run) -> None:
    assert refusal(file, "retire", kid_of(SECOND)) == (
        f"Tokens of key {kid_of(SECOND)} may still be in use: `retire {kid_of(SECOND)} --now` ends them."
    )
    said = run("retire", kid_of(SECOND), "--now")
    assert secrets_of(file) == {FIRST}
    assert "all tokens of it that may still be in use" in said
    assert "only after a restart" in said


def test_retiring_a_key_before_its_moment_says_when_that_is(file: Path) -> None:
    with_keys(file, FIRST, f"{SECOND}@{FUTURE}")
    assert f"may still be in use until {FUTURE}:" in refusal(file, "retire", kid_of(SECOND))


def test_an_expired_key_is_retired_without_a_word_more(file: Path, run: Run) -> None:
    with_keys(file, FIRST, f"{SECOND}@{PAST} {THIRD}")
    assert run("retire", kid_of(SECOND)) == (
        f"Key {kid_of(SECOND)} retired. Running servers read that only after a restart.\n"
    )
    assert secrets_of(file) == {FIRST, THIRD}


@pytest.mark.parametrize(
    "command", [["add"], ["rotate"], ["sign-with", kid_of(THIRD)], ["retire", kid_of(THIRD), "--now"]]
)
def test_any_change_drops_expired_keys(file: Path, run: Run, command: list[str]) -> None:
    with_keys(file, FIRST, f"{SECOND}@{PAST} {THIRD}")
    run(*command)
    assert FIRST in secrets_of(file)
    assert SECOND not in file.read_text()


def test_rotate_is_add_and_sign_with(file: Path, run: Run) -> None:
    said = run("rotate")
    signing, second, first = ring(file).good(utc_now())
    assert ring(file).signing == signing
    assert re.fullmatch("[0-9a-f]{64}", signing.secret)
    assert (second.secret, first.secret) == (SECOND, FIRST)
    assert first.until is not None
    assert f"Key {signing.kid} signs, and {first.kid} verifies until" in said
    assert "only after a restart" in said


def test_the_help_of_rotate_says_that_it_is_for_one_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rotate", "--help"])
    assert "for a single server" in " ".join(capsys.readouterr().out.split())


# ---- Tokens ----


def test_tokens_of_a_rotated_key_are_good_until_it_is_retired(file: Path, run: Run) -> None:
    before = CryptSettings(_env_file=file)
    access, refresh = create_access_token(before, USER, LOGIN), create_refresh_token(before, LOGIN, SALT, 3)

    run("rotate")
    after = CryptSettings(_env_file=file)
    new_access, new_refresh = create_access_token(after, USER, LOGIN), create_refresh_token(after, LOGIN, SALT, 3)

    for token in (access, new_access):
        assert decode_access_token(token, after).user_uuid == USER
    for token in (refresh, new_refresh):
        assert parse_refresh_token(token).is_genuine(SALT, after)
    with pytest.raises(InvalidToken):
        decode_access_token(new_access, before)
    assert not parse_refresh_token(new_refresh).is_genuine(SALT, before)

    run("retire", before.keyring.signing.kid, "--now")
    retired = CryptSettings(_env_file=file)

    assert decode_access_token(new_access, retired).user_uuid == USER
    assert parse_refresh_token(new_refresh).is_genuine(SALT, retired)
    with pytest.raises(InvalidToken):
        decode_access_token(access, retired)
    assert not parse_refresh_token(refresh).is_genuine(SALT, retired)


def test_a_server_that_knows_the_added_key_reads_the_tokens_of_one_that_signs_with_it(file: Path, run: Run) -> None:
    run("add")
    waiting = CryptSettings(_env_file=file)
    run("sign-with", waiting.keyring.others[-1].kid)
    switched = CryptSettings(_env_file=file)
    for theirs, ours in ((waiting, switched), (switched, waiting)):
        assert decode_access_token(create_access_token(theirs, USER, LOGIN), ours).user_uuid == USER
        assert parse_refresh_token(create_refresh_token(theirs, LOGIN, SALT, 3)).is_genuine(SALT, ours)


# ---- Refusals ----


@pytest.mark.parametrize("command", ["sign-with", "retire"])
def test_an_unknown_key_is_refused_without_repeating_it(file: Path, command: str) -> None:
    for kid in ("unknown", SECOND, kid_of(THIRD)):
        assert refusal(file, command, kid) == "There is no key of that name: `list` shows them."


def test_the_key_that_signs_is_neither_chosen_again_nor_retired(file: Path) -> None:
    assert refusal(file, "sign-with", kid_of(FIRST)) == f"Key {kid_of(FIRST)} signs already."
    for words in ([], ["--now"]):
        assert refusal(file, "retire", kid_of(FIRST), *words).startswith(f"Key {kid_of(FIRST)} signs: ")


def test_an_expired_key_does_not_sign(file: Path) -> None:
    with_keys(file, FIRST, f"{SECOND}@{PAST}")
    assert refusal(file, "sign-with", kid_of(SECOND)).startswith(f"Key {kid_of(SECOND)} has expired")


@pytest.mark.parametrize("old", ["with white space " * 3, f"somebody@home-{'x' * 32}", f"\u00a0{'x' * 40}\u2003x"])
def test_an_old_key_that_cannot_be_listed_is_not_replaced(file: Path, old: str) -> None:
    with_keys(file, old, SECOND)
    for words in (["sign-with", kid_of(SECOND)], ["rotate"]):
        line = refusal(file, *words)
        assert line.startswith("SECRET_KEY has white space or @ in it")
        assert old[:8] not in line


@pytest.mark.parametrize("name", ["SECRET_KEY", "OTHER_SECRET_KEYS", "secret_key"])
def test_keys_in_the_environment_cannot_be_changed_in_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, THIRD)
    for words in (["add"], ["sign-with", kid_of(SECOND)], ["retire", kid_of(SECOND), "--now"], ["rotate"]):
        assert refusal(file, *words).startswith(f"{name} is set in the environment, which wins over {file}")


def test_an_empty_variable_counts_as_not_set(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_SECRET_KEYS", "")
    run("add")
    assert len(secrets_of(file)) == 3


@pytest.mark.parametrize(
    ("text", "name"),
    [("SECRET_KEY=short", "SECRET_KEY"), ("", "SECRET_KEY"), (FILE.replace(SECOND, "short"), "OTHER_SECRET_KEYS")],
)
def test_a_file_whose_keys_cannot_be_is_one_line(file: Path, text: str, name: str) -> None:
    file.write_text(text)
    for words in (["list"], ["add"]):
        with pytest.raises(SettingsError, match=f"^{name} must be") as stopped:
            main(words, file)
        assert len(str(stopped.value.code).splitlines()) == 1
    assert file.read_text() == text


def test_a_file_that_is_not_there_is_one_line(file: Path) -> None:
    with pytest.raises(Refused, match=r"can't be changed: No such file or directory\.$"):
        main(["add"], file.with_name("none"))


@pytest.mark.parametrize(
    "text",
    [
        f'BASE="{FIRST}"\nSECRET_KEY="${{BASE}}"\nOTHER_SECRET_KEYS="{SECOND}"\nsecret_key="${{BASE}}"\nSECRET_KEY=x\n',
        f'SECRET_KEY="{FIRST}"\nNOTE="\nSECRET_KEY=\n"\n',
    ],
    ids=["which line counts is unclear", "a line within another value"],
)
def test_a_file_that_would_not_be_read_as_meant_is_left_alone(file: Path, text: str) -> None:
    file.write_text(text)
    assert refusal(file, "rotate").startswith(f"{file} is left as it was")


# ---- The file ----


def test_nothing_else_of_the_file_changes(file: Path, run: Run) -> None:
    file.chmod(0o640)
    run("add")
    added = ring(file).others[-1]
    assert file.read_text() == FILE.replace(f"'{SECOND}'", f'"{SECOND} {added.secret}"')

    run("sign-with", added.kid)
    until = ring(file).others[-1].until
    assert isinstance(until, datetime)
    assert file.read_text() == FILE.replace(f"KEY={FIRST}", f'KEY="{added.secret}"').replace(
        f"'{SECOND}'", f'"{SECOND} {FIRST}@{until.isoformat()}"'
    )
    for key in ring(file).others:
        run("retire", key.kid, "--now")
    assert file.read_text() == FILE.replace(f"KEY={FIRST}", f'KEY="{added.secret}"').replace(f"'{SECOND}'", '""')
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SECRET_KEY={first}\nX=1\n", 'SECRET_KEY={first}\nOTHER_SECRET_KEYS="{new}"\nX=1\n'),
        ("SECRET_KEY={first}", 'SECRET_KEY={first}\nOTHER_SECRET_KEYS="{new}"'),
        ("\ufeffSECRET_KEY={first}\r\nX=1\r\n", '\ufeffSECRET_KEY={first}\r\nOTHER_SECRET_KEYS="{new}"\r\nX=1\r\n'),
        ("SECRET_KEY={first}\r\nOTHER_SECRET_KEYS=\r\n", 'SECRET_KEY={first}\r\nOTHER_SECRET_KEYS="{new}"\r\n'),
        ("OTHER_SECRET_KEYS= # none\nSECRET_KEY={first}", 'OTHER_SECRET_KEYS= "{new}" # none\nSECRET_KEY={first}'),
        ("export SECRET_KEY={first}\nother_secret_keys=\n", 'export SECRET_KEY={first}\nother_secret_keys="{new}"\n'),
        (
            'SECRET_KEY={first}\nOTHER_SECRET_KEYS="\n{second}\n"# two lines\n',
            'SECRET_KEY={first}\nOTHER_SECRET_KEYS="{second} {new}"# two lines\n',
        ),
        (
            "SECRET_KEY=x\nSECRET_KEY={first}\nOTHER_SECRET_KEYS=x\nOTHER_SECRET_KEYS={second}",
            'SECRET_KEY=x\nSECRET_KEY={first}\nOTHER_SECRET_KEYS=x\nOTHER_SECRET_KEYS="{second} {new}"',
        ),
    ],
)
def test_the_list_is_found_or_put_behind_the_key(file: Path, run: Run, before: str, after: str) -> None:
    file.write_bytes(before.format(first=FIRST, second=SECOND).encode())
    run("add")
    new = ring(file).others[-1].secret
    assert file.read_bytes().decode() == after.format(first=FIRST, second=SECOND, new=new)


def test_keys_of_any_characters_move(file: Path, run: Run) -> None:
    odd = r"""a"b'c\n\\#$x`%{}-""" + "\u00fc" * 20
    file.write_text(
        "SECRET_KEY='{}'\nOTHER_SECRET_KEYS={}\n".format(odd.replace("\\", "\\\\").replace("'", "\\'"), SECOND)
    )
    assert ring(file).signing.secret == odd
    run("sign-with", kid_of(SECOND))
    run("sign-with", kid_of(odd))
    assert ring(file).signing.secret == odd
    assert secrets_of(file) == {odd, SECOND}


def test_a_link_stays_one(file: Path, run: Run, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    main(["rotate"], link)
    assert link.is_symlink()
    assert len(secrets_of(file)) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays(file: Path, run: Run) -> None:
    os.chown(file, 12345, 12346)
    run("add")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12346)


ADD_TEN = "from src.scripts.signing_keys import main; [main(['add']) for _ in range(10)]"


def test_two_that_add_at_once_lose_no_key(file: Path) -> None:
    command = [sys.executable, "-c", ADD_TEN]
    environment = os.environ | {"ENV_FILE": str(file)}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(process.communicate(timeout=60)[0] for process in both)
    added = set(re.findall(r"Key (\w+) added", said))
    assert len(added) == 20
    assert {key.kid for key in ring(file).others} == added | {kid_of(SECOND)}


@pytest.mark.parametrize(("folder", "module"), [("", "src.scripts.signing_keys"), ("src", "scripts.signing_keys")])
def test_it_is_a_command_in_both_folders(file: Path, folder: str, module: str) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=ROOT / folder,
            env=os.environ | {"ENV_FILE": str(file)},
            capture_output=True,
            text=True,
            check=False,
        )

    listed, refused = command(), command("retire", kid_of(FIRST))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout == f"{kid_of(FIRST)}  signs\n{kid_of(SECOND)}  verifies\n"
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1
