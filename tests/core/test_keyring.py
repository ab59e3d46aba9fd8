"""The keys that sign tokens: their names, their order, their ends."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.core.keyring import Key, Keyring, format_key, keyring, kid_of, parse_key

NEW, OLD, OLDER = "n3w-" * 10, "o1d-" * 10, "0lder-" * 8
NOW = datetime(2026, 12, 31, tzinfo=UTC)


def kids(keys: list[Key]) -> list[str]:
    return [key.kid for key in keys]


def test_a_name_is_the_same_on_every_server_and_for_ever() -> None:
    assert kid_of("k" * 32) == "c5bd22793def"


def test_different_keys_have_different_names() -> None:
    assert len({kid_of(f"{number:032}") for number in range(10_000)}) == 10_000


def test_the_signing_key_comes_first_and_the_others_in_their_order() -> None:
    ring = keyring(NEW, f" {OLDER}\n{OLD}  ")
    assert ring.signing == Key(kid_of(NEW), NEW)
    assert kids(ring.good(NOW)) == [kid_of(NEW), kid_of(OLDER), kid_of(OLD)]
    assert kids(ring.others) == [kid_of(OLDER), kid_of(OLD)]


@pytest.mark.parametrize("others", [NEW, f"{NEW} {NEW}", f"{NEW}@2000-01-01T00:00:00+00:00"])
def test_the_signing_key_listed_again_is_one_key_that_does_not_end(others: str) -> None:
    ring = keyring(NEW, others)
    assert ring == keyring(NEW, "")
    assert ring.good(NOW) == [ring.signing]


def test_an_expired_key_does_not_verify_but_is_still_listed() -> None:
    ring = keyring(NEW, f"{OLD}@{NOW.isoformat()}")
    [old] = ring.others
    before = NOW - timedelta(microseconds=1)
    assert (ring.find(old.kid, before), ring.good(before)) == (old, [ring.signing, old])
    assert (ring.find(old.kid, NOW), ring.good(NOW)) == (None, [ring.signing])


def test_moments_are_compared_across_time_zones() -> None:
    key = parse_key(f"{OLD}@2026-12-31T01:00:00+02:00")
    assert not key.is_good(NOW)
    assert key.is_good(NOW - timedelta(hours=1, seconds=1))


@pytest.mark.parametrize("kid", ["", "unknown", None, 1, [kid_of(NEW)], {"kid": kid_of(NEW)}])
def test_what_is_no_key_s_name_finds_none(kid: object) -> None:
    assert keyring(NEW, OLD).find(kid, NOW) is None


@pytest.mark.parametrize(
    "word",
    [
        "",
        "short",
        "@2026-12-31T00:00:00+00:00",
        f"{OLD}@",
        f"{OLD}@tomorrow",
        f"{OLD}@2026-12-31",
        f"{OLD}@2026-12-31T00:00:00",
        f"{OLD}@2026-13-31T00:00:00+00:00",
        f"{OLD}@{OLD}@2026-12-31T00:00:00+00:00",
    ],
)
def test_what_is_no_key_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"^(not a key|Invalid isoformat|month must be)"):
        parse_key(word)


@pytest.mark.parametrize("until", [None, NOW, NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))])
def test_a_key_is_read_as_it_was_written(until: datetime | None) -> None:
    key = Key(kid_of(OLD), OLD, until)
    assert parse_key(format_key(key)) == key


@pytest.mark.parametrize("secret", ["white space " * 4, f" {OLD}", f"{OLD}\u00a0", f"{OLD}@home", "short", ""])
def test_a_key_that_would_be_read_as_another_is_not_written(secret: str) -> None:
    for until in (None, NOW):
        with pytest.raises(ValueError, match=r"^(not a key|Invalid isoformat)"):
            format_key(Key(kid_of(secret), secret, until))


def test_keys_do_not_show() -> None:
    ring = Keyring.of(Key(kid_of(NEW), NEW), [Key(kid_of(OLD), OLD, NOW)])
    assert NEW not in repr(ring)
    assert OLD not in repr(ring)
