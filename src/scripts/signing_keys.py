"""Lists and changes the keys that sign tokens, in `src/.env` (or the file that the variable `ENV_FILE` names).

`python -m src.scripts.signing_keys rotate` replaces the key of a single server; docs/signing-keys.md has the rest.
Settings are read once per process, so running servers know the new keys only after a restart.
"""

import argparse
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from app.core.config import ENV_FILE, CryptSettings
from app.core.db.models import utc_now
from app.core.keyring import Key, Keyring, format_key, kid_of

from .env_edit import edited_copy, sole_editor

Changed = tuple[Keyring, str]  # the keys there are to be, and a line that says what was done

RESTART = "Running servers read that only after a restart."
SIGNING, OTHERS = "SECRET_KEY", "OTHER_SECRET_KEYS"


class Refused(SystemExit):
    """The command cannot be done. Uncaught, it ends the process with its one line, exit code 1."""


def main(words: Sequence[str] | None = None, file: Path = ENV_FILE) -> None:
    """Does what the command line says and prints what that was. Raises: Refused, SettingsError."""
    options = _parser().parse_args(words)
    if options.command in {None, "list"}:
        now = utc_now()
        ring = CryptSettings(_env_file=file).keyring
        print(*(_description(key, ring, now) for key in ring.by_kid.values()), sep="\n")
    else:
        print(_change(file, options))


def _parser() -> argparse.ArgumentParser:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m src.scripts.signing_keys", description=description, epilog=epilog.replace("`", "")
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="name the keys and say what they do (the default)")
    commands.add_parser("add", help="make a key that verifies and does not sign yet")
    _with_kid(
        commands.add_parser("sign-with", help="let a key sign; the one that did verifies until its tokens have expired")
    )
    retire = _with_kid(commands.add_parser("retire", help="forget a key that does not sign"))
    retire.add_argument("--now", action="store_true", help="even though tokens of it may be in use: they end")
    rotate = "add and sign-with in one step, for a single server: of several, each must know a key before one signs"
    commands.add_parser("rotate", help=rotate, description=rotate)
    return parser


def _with_kid(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("kid", metavar="KID", help="a key's name, as `list` shows it")
    return parser


def _description(key: Key, ring: Keyring, now: datetime) -> str:
    if key == ring.signing:
        return f"{key.kid}  signs"
    if not key.is_good(now):
        return f"{key.kid}  expired {_moment(key)}"
    return f"{key.kid}  verifies until {_moment(key)}" if key.until else f"{key.kid}  verifies"


def _moment(key: Key) -> str:
    return key.until.isoformat(timespec="seconds") if key.until else ""


# ---- The file ----


def _change(file: Path, options: argparse.Namespace) -> str:
    _refuse_keys_of_the_environment(file)
    try:
        file = file.resolve()  # A link stays one, and what it leads to is replaced.
        with sole_editor(file):
            settings = CryptSettings(_env_file=file)
            ring, line = _changed(options, settings)
            _write(file, settings.keyring, _without_expired(ring))
    except OSError as error:
        raise Refused(f"{file} can't be changed: {error.strerror}.") from None
    return line


def _refuse_keys_of_the_environment(file: Path) -> None:
    for name, value in os.environ.items():
        if value and name.upper() in {SIGNING, OTHERS}:
            raise Refused(f"{name} is set in the environment, which wins over {file}: change it there, or unset it.")


def _changed(options: argparse.Namespace, settings: CryptSettings) -> Changed:
    ring = settings.keyring
    if options.command == "add":
        return add(ring)
    if options.command == "sign-with":
        return sign_with(ring, options.kid, settings)
    if options.command == "retire":
        return retire(ring, options.kid, now=options.now)
    return rotate(ring, settings)


def _without_expired(ring: Keyring) -> Keyring:
    now = utc_now()
    return Keyring.of(ring.signing, [key for key in ring.others if key.is_good(now)])


def _write(file: Path, before: Keyring, after: Keyring) -> None:
    values = {OTHERS: " ".join(map(format_key, after.others))}
    if after.signing != before.signing:
        values[SIGNING] = after.signing.secret
    with edited_copy(file, values, after=SIGNING) as copy:
        if CryptSettings(_env_file=copy).keyring != after:
            raise Refused(
                f'{file} is left as it was: it must have {SIGNING}="..." and {OTHERS}="..." once each, on their own '
                "lines and without variables in them, for this command to change them."
            )
        copy.replace(file)


# ---- The commands ----


def add(ring: Keyring) -> Changed:
    """A fresh key that verifies and does not sign yet."""
    key = _new_key()
    return Keyring.of(ring.signing, [*ring.others, key]), (
        f"Key {key.kid} added: it verifies and does not sign yet. Running servers read it only after a restart: "
        f"bring it to every server, restart them all, then run `sign-with {key.kid}`."
    )


def sign_with(ring: Keyring, kid: str, settings: CryptSettings) -> Changed:
    """This key signs, and the one that did verifies until its last token has expired. Raises: Refused."""
    key = _find(ring, kid)
    if key == ring.signing:
        raise Refused(f"Key {kid} signs already.")
    if not key.is_good(utc_now()):
        raise Refused(f"Key {kid} has expired: `add` makes a new one.")
    old = replace(ring.signing, until=_end_of_tokens(settings))
    _refuse_unlistable(old)
    others = [other for other in ring.others if other != key]
    return Keyring.of(replace(key, until=None), [*others, old]), (
        f"Key {kid} signs, and {old.kid} verifies until {_moment(old)}. {RESTART}"
    )


def retire(ring: Keyring, kid: str, *, now: bool) -> Changed:
    """This key is gone; only if that is to be now, also while tokens of it may be in use. Raises: Refused."""
    key = _find(ring, kid)
    if key == ring.signing:
        raise Refused(f"Key {kid} signs: let another one do that first, with `rotate` or `add` and `sign-with`.")
    in_use = key.is_good(utc_now())
    if in_use and not now:
        until = f" until {_moment(key)}" if key.until else ""
        raise Refused(f"Tokens of key {kid} may still be in use{until}: `retire {kid} --now` ends them.")
    warning = ", and with it all tokens of it that may still be in use" if in_use else ""
    return Keyring.of(ring.signing, [other for other in ring.others if other != key]), (
        f"Key {kid} retired{warning}. {RESTART}"
    )


def rotate(ring: Keyring, settings: CryptSettings) -> Changed:
    """A fresh key signs, and the one that did verifies until its last token has expired. Raises: Refused."""
    key = _new_key()
    return sign_with(Keyring.of(ring.signing, [*ring.others, key]), key.kid, settings)


def _new_key() -> Key:
    secret = secrets.token_hex(32)
    return Key(kid_of(secret), secret)


def _find(ring: Keyring, kid: str) -> Key:
    if kid not in ring.by_kid:  # It is not repeated: it could be a key, pasted by mistake.
        raise Refused("There is no key of that name: `list` shows them.")
    return ring.by_kid[kid]


def _end_of_tokens(settings: CryptSettings) -> datetime:
    """When nothing signed until now can be good any more; in whole seconds, and none too early."""
    refresh = timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS)
    access = timedelta(minutes=settings.ACCESS_TOKEN_EXPIRE_MINUTES)
    return (utc_now() + max(refresh, access) + timedelta(seconds=1)).replace(microsecond=0)


def _refuse_unlistable(key: Key) -> None:
    try:
        format_key(key)
    except ValueError:
        raise Refused(
            f"{SIGNING} has white space or @ in it, so {OTHERS} cannot hold it: a new one by hand ends all logins."
        ) from None


if __name__ == "__main__":
    main()
