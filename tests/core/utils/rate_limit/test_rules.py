"""Which rule applies, what its policy is called, and how the rules come out of the database."""

import re
from collections.abc import AsyncIterator

import asyncpg
import pytest

from app.core.config import DefaultRateLimitSettings, Settings
from app.core.db.database import close_database, open_database
from app.core.utils.rate_limit.rules import (
    EVERY_PATH,
    Rule,
    Rules,
    Window,
    as_documented,
    canonical,
    default_rule,
    fingerprint,
    load_rules,
)
from tests.conftest import connect

pytestmark = pytest.mark.anyio

PRO, FREE = 1, 2  # tiers
USER, USERS = "/api/v1/user/{username}", "/api/v1/users"


def rule(path: str, *windows: Window, name: str = "a rule") -> Rule:
    return Rule(name, path, windows or (Window(10, 60),))


# ---- Which one ----


def test_the_tier_s_rule_for_the_path_comes_first_then_its_rule_for_every_path_then_the_default() -> None:
    mine, others, default = rule(USER), rule(EVERY_PATH), rule(EVERY_PATH, Window(3, 60))
    assert Rules({PRO: [mine, others]}, default).find(PRO, USER) is mine
    assert Rules({PRO: [others, mine]}, default).find(PRO, USERS) is others
    assert Rules({PRO: [mine]}, default).find(PRO, USERS) is default
    assert Rules({}, default).find(PRO, USER) is default
    assert Rules({PRO: [mine]}, None).find(PRO, USERS) is None


def test_a_tier_has_its_own_rules_and_who_has_none_the_default() -> None:
    pro, free, default = rule(USER), rule(USER), rule(EVERY_PATH)
    rules = Rules({PRO: [pro], FREE: [free]}, default)
    assert rules.find(PRO, USER) is pro
    assert rules.find(FREE, USER) is free
    assert rules.find(3, USER) is default
    assert rules.find(None, USER) is default
    assert Rules({PRO: [pro]}, None).find(None, USER) is None


def test_a_rule_is_for_a_template_and_not_for_what_it_matches() -> None:
    assert Rules({PRO: [rule(USER)]}, None).find(PRO, "/api/v1/user/ann") is None


@pytest.mark.parametrize(
    ("path", "same"), [("/users/", "/users"), ("/users", "/users"), ("/users//", "/users"), ("/", "/"), ("*", "*")]
)
def test_a_slash_at_the_end_is_no_other_path(path: str, same: str) -> None:
    assert canonical(path) == same
    found = Rules({PRO: [rule(path)]}, None).find(PRO, canonical(same))
    assert found is not None
    assert found.keys("user:1") == rule(same).keys("user:1")


@pytest.mark.parametrize(
    ("path", "spelled"),
    [
        ("/file/{path:path}", "/file/{path}"),
        ("/{a:int}/{b_2:float}/{c}", "/{a}/{b_2}/{c}"),
        ("get  /file/{path:path}", "GET /file/{path}"),
        ("POST /a:b/{c}", "POST /a:b/{c}"),
        ("*", "*"),
    ],
)
def test_a_path_is_spelled_as_documented(path: str, spelled: str) -> None:
    assert as_documented(path) == spelled
    assert canonical(path) == spelled


def test_the_most_exact_rule_of_a_tier_applies() -> None:
    one, template, others, default = rule(f"POST {USERS}"), rule(USERS), rule(EVERY_PATH), rule(EVERY_PATH)
    rules = Rules({PRO: [others, template, one], FREE: [one]}, default)
    assert rules.find(PRO, USERS, "POST") is one
    assert rules.find(PRO, USERS, "GET") is template
    assert rules.find(PRO, USERS) is template
    assert rules.find(PRO, USER, "POST") is others
    assert rules.find(FREE, USERS, "POST") is one
    assert rules.find(FREE, USERS, "GET") is default
    assert not set(one.keys("user:1")) & set(template.keys("user:1"))


def test_every_rule_of_a_tier_is_listed_and_the_default_unless_it_is_replaced() -> None:
    mine, more, others, default = rule(USER), rule("/another"), rule(EVERY_PATH), rule(EVERY_PATH)
    assert Rules({PRO: [mine, more]}, default).all_of(PRO) == [more, mine, default]
    assert [id(one) for one in Rules({PRO: [mine, others]}, default).all_of(PRO)] == [id(others), id(mine)]
    assert Rules({PRO: [mine]}, None).all_of(PRO) == [mine]
    assert Rules({PRO: [mine]}, default).all_of(None) == [default]
    assert Rules({PRO: [mine]}, None).all_of(FREE) == []


def test_the_default_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "7")
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_PERIOD", "30")
    default = default_rule(DefaultRateLimitSettings())
    assert default is not None
    assert (default.path, default.windows) == (EVERY_PATH, (Window(7, 30),))


# ---- What a rule has ready ----


def test_two_rules_share_a_window_when_path_and_period_are_the_same() -> None:
    """A changed limit goes on from what is used, and so does another name. With another period, only the list is."""
    before = rule(USERS, Window(5, 60), name="before").keys("user:1")
    assert rule(USERS, Window(500, 60), name="after").keys("user:1") == before
    assert set(rule(USERS, Window(5, 61)).keys("user:1")) & set(before) == {before[0]}
    assert not set(rule(USER, Window(5, 60)).keys("user:1")) & set(before)


def test_the_script_takes_periods_limits_and_microseconds() -> None:
    expected = ("60 86400", 2, 5, 60_000_000, 1000, 86_400_000_000)
    assert rule(USERS, Window(5, 60), Window(1000, 86_400)).arguments == expected


# An item of a list of RFC 9651 as `RateLimit-Policy` has them: a string, and integers as parameters.
_ITEM = re.compile(
    r'"(?P<name>(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?P<parameters>(?:; *[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*)'
)
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def parsed(header: bytes) -> list[tuple[str, dict[str, int]]]:
    """The items of a list of RFC 9651. Raises: AssertionError when it is none."""
    text, at, items = header.decode("ascii"), 0, []
    while True:
        found = _ITEM.match(text, at)
        assert found is not None, text[at:]
        pairs = (pair.split("=") for pair in found["parameters"].split(";") if pair)
        name = re.sub(r"\\(.)", r"\1", found["name"])
        items.append((name, {key.strip(): int(value) for key, value in pairs}))
        at = found.end()
        if at == len(text):
            return items
        comma = _COMMA.match(text, at)
        assert comma is not None, text[at:]
        at = comma.end()


@pytest.mark.parametrize(
    "header", [b"", b'"a', b'"a"b";q=1', b'"\xe9";q=1', b'"a";q=1,', b'"a";Q=1', b'"\\a"', b"a;q=1"]
)
def test_the_checker_of_these_tests_knows_what_is_no_list(header: bytes) -> None:
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        parsed(header)


NAMES = ["all", 'say "please"', "back\\slash", "Ünïcödé", "日本", "a;q=1, b", "100 %", "%41", "it's", "~", "\x7f", "\t"]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_rule_is_called_its_policy_is_a_list_of_the_standard(name: str) -> None:
    one = rule(USERS, Window(10, 60), Window(1000, 86_400), name=name)
    first, second = parsed(one.policy_header)
    assert first[1] == {"q": 10, "w": 60}
    assert second == (f"{first[0]}-86400s", {"q": 1000, "w": 86_400})
    assert [parsed(policy)[0][0] for policy in one.policies] == [first[0], second[0]]


def test_names_that_differ_have_policies_that_differ() -> None:
    assert len({rule(USERS, name=name).policies for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", ["all", "a;q=1, b", "it's", "(a) <b> [c] {d}"])
def test_a_plain_name_is_the_policy_s(name: str) -> None:
    assert rule(USERS, name=name).policies == (f'"{name}"'.encode(),)


# ---- Out of the database ----


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection past everything of ours, to a database with two tiers that the app has open."""
    engine = open_database(settings)
    connection = await connect(settings.POSTGRES_DB)
    await connection.execute("INSERT INTO tier (id, name) VALUES (1, 'pro'), (2, 'free')")
    try:
        yield connection
    finally:
        await connection.close()
        await close_database(engine)


INSERT = 'INSERT INTO rate_limit (tier_id, name, path, "limit", period, additional_windows) VALUES '


async def test_rules_come_from_the_database(sql: asyncpg.Connection) -> None:
    default = rule(EVERY_PATH)
    assert (await load_rules(default)).all_of(PRO) == [default]
    await sql.execute(
        f"{INSERT} (1, 'user', '{USER}', 5, 60, '[]'), "
        f"(1, 'others', '*', 9, 30, '[]'), (2, 'user', '{USER}', 1, 60, '[]')"
    )
    rules = await load_rules(default)
    assert rules.find(PRO, USER) == Rule("user", USER, (Window(5, 60),))
    assert rules.find(PRO, USERS) == Rule("others", EVERY_PATH, (Window(9, 30),))
    assert rules.find(FREE, USER) == Rule("user", USER, (Window(1, 60),))
    assert rules.find(FREE, USERS) is default
    assert (await load_rules(None)).find(FREE, USERS) is None


async def test_a_rule_can_have_several_windows(sql: asyncpg.Connection) -> None:
    more = '[{"limit": 100, "period": 3600}, {"limit": 1000, "period": 86400}]'
    await sql.execute(f"{INSERT} (1, 'user', '{USER}', 5, 60, '{more}')")
    found = (await load_rules(None)).find(PRO, USER)
    assert found is not None
    assert found.windows == (Window(5, 60), Window(100, 3600), Window(1000, 86_400))


@pytest.mark.parametrize(
    ("first", "more", "windows"),
    [
        (5, '[{"limit": 3, "period": 60}]', (Window(3, 60),)),
        (5, '[{"limit": 7, "period": 60}]', (Window(5, 60),)),
        (
            5,
            '[{"limit": 9, "period": 30}, {"limit": 8, "period": 30}, {"limit": 2, "period": 60}]',
            (Window(2, 60), Window(8, 30)),
        ),
    ],
)
async def test_of_windows_with_the_same_period_the_strictest_counts(
    sql: asyncpg.Connection, first: int, more: str, windows: tuple[Window, ...]
) -> None:
    await sql.execute(f"{INSERT} (1, 'user', '{USER}', {first}, 60, '{more}')")
    found = (await load_rules(None)).find(PRO, USER)
    assert found is not None
    assert found.windows == windows
    assert len(set(found.keys("user:1"))) == 1 + 2 * len(windows)


async def test_the_fingerprint_changes_with_whatever_is_changed_and_with_nothing_else(sql: asyncpg.Connection) -> None:
    seen = [await fingerprint()]
    for statement in (
        f"{INSERT} (1, 'user', '{USER}', 5, 60, '[]')",
        f"{INSERT} (2, 'user', '{USER}', 5, 60, '[]')",
        'UPDATE rate_limit SET "limit" = 6 WHERE tier_id = 1',
        "UPDATE rate_limit SET period = 30 WHERE tier_id = 1",
        "UPDATE rate_limit SET name = 'another' WHERE tier_id = 1",
        "UPDATE rate_limit SET path = '/another' WHERE tier_id = 1",
        """UPDATE rate_limit SET additional_windows = '[{"limit": 9, "period": 3600}]' WHERE tier_id = 1""",
        """UPDATE rate_limit SET additional_windows = '[{"limit": 8, "period": 3600}]' WHERE tier_id = 1""",
        "DELETE FROM rate_limit WHERE tier_id = 1",
    ):
        await sql.execute(statement)
        seen.append(await fingerprint())
        await sql.execute("UPDATE tier SET name = name || 'x'")
        assert await fingerprint() == seen[-1]
    assert len(set(seen)) == len(seen)
    await sql.execute("DELETE FROM rate_limit")
    assert await fingerprint() == seen[0]
