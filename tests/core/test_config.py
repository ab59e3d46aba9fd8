"""Settings: where they come from, and what a person reads when one is broken."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from string import ascii_letters, ascii_lowercase, digits, punctuation
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from app.core.config import (
    CORSSettings,
    PostgresSettings,
    RedisCacheSettings,
    RedisQueueSettings,
    Settings,
    SettingsError,
)
from app.core.settings.errors import variables_of
from app.core.settings.weaknesses import weaknesses
from tests.processes import IN_FULL

SRC = Path(__file__).parents[2] / "src"
STRONG = "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("APP_NAME=from the file\nCONTACT_NAME=from the file\nUNKNOWN=x\n")
    monkeypatch.setenv("APP_NAME", "from the environment")

    settings = Settings(_env_file=file)

    assert (settings.APP_NAME, settings.CONTACT_NAME) == ("from the environment", "from the file")


DRAWN = 500 if IN_FULL else 100  # of each kind of good key


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("POSTGRES_PORT", "5432x", "POSTGRES_PORT must be a TCP port, 1 to 65535."),
        ("REDIS_QUEUE_PORT", "70000", "REDIS_QUEUE_PORT must be a TCP port, 1 to 65535."),
        ("ENVIRONMENT", "prod", "ENVIRONMENT must be one of local, staging, production."),
        ("ALGORITHM", "none", "ALGORITHM must be one of HS256, HS384, HS512."),
        ("SECRET_KEY", "short", "SECRET_KEY must be at least 32 random characters (`openssl rand -hex 32` makes 64)."),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "0", "ACCESS_TOKEN_EXPIRE_MINUTES must be a number of minutes, 1 to 1440."),
        ("DEFAULT_RATE_LIMIT_LIMIT", "-1", "DEFAULT_RATE_LIMIT_LIMIT must be a number of requests, 1 or more."),
        ("MAX_BODY_BYTES", "1MB", "MAX_BODY_BYTES must be the largest request body, in bytes."),
        (
            "POSTGRES_URL",
            "mysql://somebody:hunter2@db/app",
            "POSTGRES_URL must be of the form postgresql://user:password@host:port/database.",
        ),
        (
            "POSTGRES_URL",
            "hunter2",
            "POSTGRES_URL must be of the form postgresql://user:password@host:port/database.",
        ),
        ("CORS_ALLOW_CREDENTIALS", "perhaps", "CORS_ALLOW_CREDENTIALS must be true or false."),
        (
            "REDIS_QUEUE_URL",
            "redis+cluster://:hunter2@queue",
            "REDIS_QUEUE_URL must be of the form redis://user:password@host:port/0 "
            "(rediss:// for TLS, unix:// for a socket) or redis+sentinel://user:password@host:port,host:port/name.",
        ),
        (
            "REDIS_CACHE_URL",
            "http://:hunter2@cache",
            "REDIS_CACHE_URL must be of the form redis://user:password@host:port/0 "
            "(rediss:// for TLS, unix:// for a socket), redis+cluster://user:password@host:port,host:port "
            "or redis+sentinel://user:password@host:port,host:port/name.",
        ),
    ],
)
def test_a_broken_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == message
    assert value not in str(stopped.value) or value in {"short", "none", "0", "-1", "prod"}


@pytest.mark.parametrize(
    "written",
    [
        STRONG[:31],
        f"{STRONG} {STRONG[:31]}",
        f"{STRONG}@",
        f"{STRONG}@tomorrow",
        f"{STRONG}@2026-12-31",
        f"{STRONG}@2026-12-31T00:00:00",
        f"{STRONG}@2026-12-31T00:00:00+00:00@",
        f"{STRONG[:31]}@2026-12-31T00:00:00+00:00",
    ],
)
def test_what_is_not_a_list_of_keys_is_one_line(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("OTHER_SECRET_KEYS", written)
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == (
        "OTHER_SECRET_KEYS must be keys that verify but do not sign, with spaces between: at least 32 characters each, "
        "and possibly @ and when to stop, such as KEY@2026-12-31T00:00:00+00:00."
    )


def test_keys_may_have_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_SECRET_KEYS", f" {STRONG}@2026-12-31T00:00:00Z\n{STRONG}2 ")
    first, second = Settings().keyring.others
    assert (first.secret, first.until) == (STRONG, datetime(2026, 12, 31, tzinfo=UTC))
    assert (second.secret, second.until) == (f"{STRONG}2", None)


def test_a_missing_value_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY")
    with pytest.raises(SettingsError, match=r"^SECRET_KEY must be .* It is not set\.$"):
        Settings()


def test_an_empty_value_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", "")
    assert Settings().POSTGRES_URL is None


def test_each_fault_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PORT", "x")
    monkeypatch.setenv("ENVIRONMENT", "x")
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert len(str(stopped.value.code).splitlines()) == 2


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"\xff\xfe\x00SECRET")
    with pytest.raises(SettingsError, match="must be a UTF-8 text file"):
        Settings(_env_file=file)


@pytest.mark.parametrize(
    ("weak", "name"),
    [
        ({"SECRET_KEY": "a" * 64}, "SECRET_KEY"),
        ({"SECRET_KEY": "changeme-changeme-changeme-0123456789"}, "SECRET_KEY"),
        ({"OTHER_SECRET_KEYS": "a" * 64}, "OTHER_SECRET_KEYS"),
        ({"OTHER_SECRET_KEYS": f"{STRONG}{STRONG} {'ab' * 32}@2999-01-01T00:00:00+00:00"}, "OTHER_SECRET_KEYS"),
        ({"POSTGRES_PASSWORD": "postgres"}, "POSTGRES_PASSWORD"),
        ({"SECRET_KEY": "0123456789abcdef" * 4}, "SECRET_KEY"),
        ({"SECRET_KEY": "aabbaababbbabaabbabababaabbbaaba"}, "SECRET_KEY"),
        ({"SECRET_KEY": "qwertyuiopasdfghjklzxcvbnm123456"}, "SECRET_KEY"),
        ({"ADMIN_PASSWORD": "password1234"}, "ADMIN_PASSWORD"),
        ({"ADMIN_PASSWORD": "aaaaaaaaaaaa"}, "ADMIN_PASSWORD"),
        ({"ADMIN_PASSWORD": "1q2w3e4r5t6y"}, "ADMIN_PASSWORD"),
        ({"ADMIN_PASSWORD": "Summer2026!!"}, "ADMIN_PASSWORD"),
        ({"POSTGRES_PASSWORD": "123456789012"}, "POSTGRES_PASSWORD"),
        ({"POSTGRES_PASSWORD": STRONG[:11]}, "POSTGRES_PASSWORD"),
    ],
)
def test_production_refuses_weak_secrets(weak: dict[str, Any], name: str) -> None:
    strong: dict[str, Any] = {"SECRET_KEY": STRONG, "POSTGRES_PASSWORD": STRONG, "ADMIN_PASSWORD": STRONG}
    assert Settings(**strong, ENVIRONMENT="production").ENVIRONMENT == "production"
    assert Settings(**strong | weak, ENVIRONMENT="local").ENVIRONMENT == "local"

    with pytest.raises(SettingsError) as stopped:
        Settings(**strong | weak, ENVIRONMENT="production")

    assert str(stopped.value.code).startswith(f"{name} must not be")
    assert weak[name] not in str(stopped.value.code)


@pytest.mark.parametrize(("name", "size", "most"), [("METRICS_TOKEN", 8, 5), ("SECRET_KEY", 16, 0)])
def test_production_takes_what_is_random(name: str, size: int, most: int) -> None:
    """Keys as `openssl rand -hex` makes them: one in a hundred, or in a million, may be refused."""
    draw = Random(20261125)  # noqa: S311 -- the same in each run
    drawn = [SimpleNamespace(**{name: SecretStr(draw.randbytes(size).hex())}) for _ in range(DRAWN)]
    assert sum(bool(weaknesses(settings)) for settings in drawn) <= most


@pytest.mark.parametrize("name", ["ADMIN_PASSWORD", "POSTGRES_PASSWORD", "METRICS_TOKEN"])
def test_sixteen_random_characters_are_a_password(name: str) -> None:
    draw = Random(20261125)  # noqa: S311 -- the same in each run
    for characters in (ascii_lowercase, ascii_letters + digits, ascii_letters + digits + punctuation):
        for _ in range(100):
            value = "".join(draw.choices(characters, k=16))
            assert weaknesses(SimpleNamespace(**{name: SecretStr(value)})) == []


def test_the_dictionaries_are_loaded_for_production_only_and_not_for_long() -> None:
    look = (
        "import sys; sys.addaudithook(lambda event, of: event == 'import' and of[0] == 'zxcvbn' and print('yes'))\n"
        "from app.core.config import Settings; Settings(); assert 'zxcvbn' not in sys.modules"
    )
    for environment, loaded in (("local", ""), ("production", "yes")):
        variables = os.environ | {"ENVIRONMENT": environment, "SECRET_KEY": STRONG}
        done = subprocess.run([sys.executable, "-c", look], cwd=SRC, env=variables, capture_output=True, check=True)
        assert done.stdout.decode().strip() == loaded


def test_production_does_not_look_at_a_database_password_that_is_not_used() -> None:
    settings = Settings(
        SECRET_KEY=STRONG,
        POSTGRES_PASSWORD="postgres",
        POSTGRES_URL=f"postgresql://app:{STRONG}@db/app",
        ADMIN_PASSWORD=STRONG,
        ENVIRONMENT="production",
    )
    assert settings.postgres_url.password == STRONG


def test_the_parts_make_an_address() -> None:
    settings = PostgresSettings(
        POSTGRES_USER="me", POSTGRES_PASSWORD="p@ss/word", POSTGRES_SERVER="db", POSTGRES_PORT=5433, POSTGRES_DB="app"
    )
    shown = settings.postgres_url.render_as_string(hide_password=False)
    assert shown == "postgresql+asyncpg://me:p%40ss%2Fword@db:5433/app"


def test_a_url_wins_over_the_parts() -> None:
    settings = PostgresSettings(POSTGRES_URL="postgres://me:pw@db:5433/app?sslmode=require", POSTGRES_SERVER="other")
    shown = settings.postgres_url.render_as_string(hide_password=False)
    assert shown == "postgresql+asyncpg://me:pw@db:5433/app?ssl=require"
    assert RedisCacheSettings(REDIS_CACHE_URL="rediss://:pw@cache/1").redis_cache_url == "rediss://:pw@cache/1"
    assert RedisQueueSettings(REDIS_QUEUE_HOST="q", REDIS_QUEUE_PORT=1).redis_queue_url == "redis://q:1/0"


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ("", ()),
        (" , ", ()),
        ("*", ("*",)),
        ("https://page.example", ("https://page.example",)),
        ("https://page.example, http://localhost:3000,", ("https://page.example", "http://localhost:3000")),
        ('["https://page.example", "http://[::1]:3000"]', ("https://page.example", "http://[::1]:3000")),
        # Browsers name an origin in lower case and without the usual port.
        ("HTTPS://Page.Example:443,http://page.example:80", ("https://page.example", "http://page.example")),
    ],
)
def test_origins_are_a_list(monkeypatch: pytest.MonkeyPatch, written: str, origins: tuple[str, ...]) -> None:
    monkeypatch.setenv("CORS_ORIGINS", written)
    found = CORSSettings().CORS_ORIGINS
    assert found == origins


def test_origins_are_a_list_in_the_file_and_in_code(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text('CORS_ORIGINS="https://page.example,http://localhost:3000"\n')
    in_file = CORSSettings(_env_file=file)
    in_code = CORSSettings(CORS_ORIGINS=("https://page.example", "http://localhost:3000"))
    assert in_file.CORS_ORIGINS == in_code.CORS_ORIGINS == ("https://page.example", "http://localhost:3000")


@pytest.mark.parametrize(
    "written",
    [
        "page.example",
        "null",
        "ftp://page.example",
        "https://",
        "https://page.example/",
        "https://page.example/path",
        "https://page.example?query",
        "https://somebody:hunter2@page.example",
        "https://*.page.example",
        "https://bücher.example",
        "https://page.example:",
        "https://page.example:0",
        "https://page.example:65536",
        "https://page.example https://other.example",
        "https://page.example,other.example,third.example",
        '["https://page.example"',
        '["https://page.example", 1, 2]',
    ],
)
def test_what_is_not_an_origin_is_one_line(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("CORS_ORIGINS", written)
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == (
        "CORS_ORIGINS must be a comma-separated list of origins, "
        "each scheme://host or scheme://host:port (http, https), or *."
    )


@pytest.mark.parametrize("name", ["CORS_ALLOW_HEADERS", "CORS_EXPOSE_HEADERS"])
def test_header_names_are_a_list(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "X-One, x-two,")
    assert getattr(CORSSettings(), name) == ("X-One", "x-two")
    for written in ("X One", "X-One:", "X-One\nX-Two", "Ärger"):
        monkeypatch.setenv(name, written)
        with pytest.raises(SettingsError) as stopped:
            CORSSettings()
        assert stopped.value.code == (
            f"{name} must be a comma-separated list of header names, such as X-My-Header, or *."
        )


def test_every_header_cannot_be_read_with_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ALLOW_CREDENTIALS", "true")
    monkeypatch.setenv("CORS_EXPOSE_HEADERS", "*")
    with pytest.raises(SettingsError) as stopped:
        CORSSettings()
    assert stopped.value.code == "CORS_EXPOSE_HEADERS must be a list without * when CORS_ALLOW_CREDENTIALS is true."


def test_credentials_are_refused_for_every_origin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ALLOW_CREDENTIALS", "true")
    monkeypatch.setenv("CORS_ORIGINS", "https://page.example")
    assert Settings().CORS_ALLOW_CREDENTIALS is True
    monkeypatch.setenv("CORS_ORIGINS", "https://page.example,*")
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == "CORS_ORIGINS must be a list without * when CORS_ALLOW_CREDENTIALS is true."


def test_secrets_do_not_show() -> None:
    settings = Settings(
        POSTGRES_PASSWORD="hunter2",
        POSTGRES_URL="postgresql://a:hunter2@b/c",
        SECRET_KEY=STRONG,
        OTHER_SECRET_KEYS=f"{STRONG}2",
    )
    shown = f"{settings!r} {settings.keyring!r}"
    assert "hunter2" not in shown
    assert STRONG not in shown


def test_the_example_names_every_setting() -> None:
    example = (SRC / ".env.example").read_text()
    named = set(re.findall(r"(?m)^(?:# )?([A-Z][A-Z0-9_]+)=", example))
    fields = variables_of(Settings)
    known = {name.upper() for name in fields} | {"EMBEDDED_SERVICES"}
    missing = "\n".join(example_line(name) for name in sorted(fields) if name.upper() not in named)
    assert not missing, f"Add to src/.env.example, with a comment that says what it is:\n{missing}\n"
    of_models = ("ADMIN_", "TIER_")  # also read for fields that an application adds to User and Tier
    stale = sorted(name for name in named - known if not name.startswith(of_models))
    assert not stale, f"Remove from src/.env.example what is no setting any more: {', '.join(stale)}"


def example_line(name: str) -> str:
    """The line of a setting with its default; a secret and what has no default are left empty."""
    default = variables_of(Settings)[name].default
    text = "" if default is None or default is PydanticUndefined or isinstance(default, SecretStr) else str(default)
    return f'# {name}="{text}"'


def test_no_two_groups_share_the_name_of_a_validator() -> None:
    """Pydantic keeps one of each name: the other variable would be read by nobody, and only in the whole `Settings`."""
    names: list[str] = []
    for group in Settings.__bases__:
        decorators = group.__pydantic_decorators__  # type: ignore[attr-defined]  # of a type, for all mypy knows
        names += [*decorators.field_validators, *decorators.model_validators]
    assert len(names) > 5
    shared = sorted({name for name in names if names.count(name) > 1})
    assert not shared, "rename these validators in one of the groups that have them: " + ", ".join(shared)
