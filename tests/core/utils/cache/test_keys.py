"""Whatever an id is made of, it stays within its own key."""

from enum import Enum, StrEnum
from fnmatch import fnmatchcase
from inspect import signature
from itertools import combinations
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

import pytest
from fastapi import APIRouter, Query
from hypothesis import given
from hypothesis import strategies as st

from app.core.exceptions.cache_exceptions import InvalidRequestError
from app.core.utils.cache import cache, invalidate
from app.core.utils.cache.keys import Template, encoded, resource_key, variant_of
from tests.core.utils.cache.conftest import CacheSettings, Stored, running, states

pytestmark = pytest.mark.anyio


class Colour(StrEnum):
    RED = "red"


class Size(Enum):
    LARGE = 3


# ---- A value ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (-7, "-7"),
        ("alice", "alice"),
        ("Ünïcödé 🚢", "Ünïcödé 🚢"),
        ("a@b.c/d+e_f-g", "a@b.c/d+e_f-g"),
        (UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (Colour.RED, "red"),
        (Size.LARGE, "3"),
        ("", ""),
        ("a:b", "a%3Ab"),
        ("*", "%2A"),
        ("a?[b]", "a%3F%5Bb%5D"),
        ("{tag}", "%7Btag%7D"),
        ("back\\slash", "back%5Cslash"),
        ("line\nbreak\r\0\x1f\x7f", "line%0Abreak%0D%00%1F%7F"),
        ("100%", "100%25"),
        ("%3A", "%253A"),
        ("~", "%7E"),
        ("\ud800", "%ED%A0%80"),
    ],
)
def test_a_value_is_percent_encoded_where_it_has_to_be(value: object, text: str) -> None:
    assert encoded(value) == text


def test_a_long_value_is_replaced_by_its_hash() -> None:
    long, other = "x" * 10_000, "x" * 9_999 + "y"
    assert len(encoded(long)) < 50
    assert encoded(long) == encoded(long)
    assert encoded(long) != encoded(other)
    assert encoded("x" * 200) == "x" * 200
    assert encoded(encoded(long)) != encoded(long)  # Nobody else can be named as the hash is.
    assert encoded("\ud800" * 10_000) != encoded("\ud801" * 10_000)


@given(st.text(alphabet=st.characters(), max_size=300), st.text(alphabet=st.characters(), max_size=300))
def test_two_values_are_one_only_if_they_are_the_same(one: str, other: str) -> None:
    assert (encoded(one) == encoded(other)) == (one == other)


@given(st.text(alphabet="*?[]\\^-%:{}~\0\n\ud800aé0", max_size=12), st.text(alphabet="*?[]\\^-%:aé0", max_size=12))
def test_no_value_is_more_than_text_in_a_pattern(value: str, other: str) -> None:
    text = encoded(value)
    assert not set(text) & set("*?[]\\:{}\0\n")
    assert fnmatchcase(encoded(other), text) == (value == other)


def test_a_resource_has_its_prefix_and_id_as_key() -> None:
    assert resource_key("sample_data", 7) == "sample_data:7"
    assert resource_key("sample_data", "a:b*") == "sample_data:a%3Ab%2A"


# ---- A template ----


async def handler(username: str, page: int) -> None:
    """A handler's parameters."""


def test_a_template_is_filled_with_encoded_arguments() -> None:
    template = Template("{username}_posts:{page}", signature(handler), "key_prefix")
    assert template.fill({"username": "alice", "page": 2}) == "alice_posts:2"
    assert template.fill({"username": "{page}:*", "page": 2}) == "%7Bpage%7D%3A%2A_posts:2"


def test_a_template_can_be_plain_text_or_hold_braces() -> None:
    assert Template("posts", signature(handler), "key_prefix").fill({}) == "posts"
    assert Template("{{posts}}", signature(handler), "key_prefix").fill({}) == "{posts}"
    assert Template("{username}", signature(handler), "key_prefix").fill({"username": "alice"}) == "alice"


@pytest.mark.parametrize("text", ["{", "}", "{nobody}", "{0}", "{username.__class__}", "{page[0]}", "", None, 7])
def test_what_is_no_template_is_refused_with_the_options_name(text: object) -> None:
    with pytest.raises(InvalidRequestError, match="some_option"):
        Template(text, signature(handler), "some_option")  # type: ignore[arg-type]


# ---- A variant ----


def test_variants_are_told_apart_by_their_parts_and_where_each_ends() -> None:
    parts = [[], [b""], [b"", b""], [b"ab"], [b"a", b"b"], [b"b", b"a"], [b"2:ab"], [b"a1:b"], [b"abc" * 10_000]]
    assert len({variant_of(some) for some in parts}) == len(parts)
    assert variant_of([b"a", b"b"]) == variant_of(iter([b"a", b"b"]))
    assert {len(variant_of(some)) for some in parts} == {16}


# ---- Over HTTP ----

HOSTILE = [
    "*",
    "?",
    "a*",
    "[a-z]*",
    "[^b]",
    "[",
    "]",
    "{}",
    "{my_id}",
    "{a}",
    "a:b",
    ":",
    "::",
    "a:*",
    "line\nbreak",
    "\r\n",
    "\0",
    "a\0",
    "%",
    "%2A",
    "%25",
    "%00",
    "\\",
    "\\*",
    "~",
    " ",
    "🚢",
    "é",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "*" * 10_000,
    "_posts",
    "'\"; DROP",
]
INNOCENT = ["a", "b", "ab", "my_id", "42"]


def hostile_router(pattern: str) -> APIRouter:
    """Resources that are known by any text, and a way to drop one, with others by a pattern."""
    router = APIRouter()

    @router.get("/of")
    @cache("{name}_posts", resource_id_name="name")
    async def read(name: Annotated[str, Query()]) -> str:
        return name

    @router.get("/page/{number}")
    @cache("{name}_page", resource_id_name="number")
    async def read_page(name: Annotated[str, Query()], number: int) -> str:
        return name

    @router.delete("/of")
    @cache("{name}_posts", resource_id_name="name", pattern_to_invalidate_extra=[pattern])
    async def erase(name: Annotated[str, Query()]) -> None:
        return None

    return router


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text[:12]))
async def test_a_hostile_id_neither_reads_nor_drops_nor_matches_anothers_key(
    cache_only: CacheSettings, stored: Stored, hostile: str
) -> None:
    async with running(hostile_router("{name}_page:*"), cache_only) as client:

        async def ask(method: str, path: str, name: str) -> str:
            answer = await client.request(method, f"{path}?name={quote(name, safe='')}")
            assert answer.status_code == 200
            return str(answer.json())

        for name in INNOCENT:
            for path in ("of", "page/1"):
                assert await ask("GET", path, name) == name
        innocent = stored.all_keys()
        assert len(innocent) == 2 * len(INNOCENT)

        for path in ("of", "page/1", "page/2"):
            for _ in range(2):
                assert await ask("GET", path, hostile) == hostile
        added = stored.all_keys() - innocent
        assert len(added) == 3
        assert all(len(key) < 1000 and key.isprintable() for key in added)

        await ask("DELETE", "of", hostile)
        assert stored.all_keys() == innocent


# Starlette takes no line break for a part of a path.
@pytest.mark.parametrize("hostile", [text for text in HOSTILE if "\n" not in text], ids=lambda text: ascii(text[:12]))
async def test_a_hostile_id_in_the_path_is_one_resource(
    cache_only: CacheSettings, stored: Stored, hostile: str
) -> None:
    router = APIRouter()

    @router.get("/in/{name:path}")
    @cache("in", resource_id_name="name")
    async def read(name: str) -> str:
        return name

    async with running(router, cache_only) as client:
        for name in ("innocent", hostile):
            answers = [await client.get(f"in/{quote(name, safe='')}") for _ in range(2)]
            assert [answer.json() for answer in answers] == [name, name]
            assert states(*answers) == ["MISS", "HIT"]
        assert len(stored.all_keys()) == 2

        await invalidate("in", hostile)
        assert stored.all_keys() == {"in:innocent"}


async def test_hostile_ids_have_keys_of_their_own(cache_only: CacheSettings, stored: Stored) -> None:
    async with running(hostile_router("{name}_page:*"), cache_only) as client:
        for name in [*HOSTILE, *INNOCENT]:
            await client.get(f"of?name={quote(name, safe='')}")
    assert len(stored.all_keys()) == len(HOSTILE) + len(INNOCENT)


def test_hostile_ids_differ_in_their_text() -> None:
    assert all(encoded(one) != encoded(other) for one, other in combinations([*HOSTILE, *INNOCENT], 2))


def test_an_empty_value_does_not_let_a_pattern_match_everything() -> None:
    with pytest.raises(InvalidRequestError, match="something fixed before it"):
        hostile_router("{name}*")


async def test_a_text_that_is_no_unicode_can_be_dropped(cache_only: CacheSettings, stored: Stored) -> None:
    async with running(hostile_router("{name}_page:*"), cache_only) as client:
        await client.get("of?name=a")
        await invalidate("{name}_posts", "\ud800")
        assert stored.all_keys() == {"a_posts:a"}


@pytest.mark.parametrize("hostile", ["*", "[ab]*", "\0", "\n", "%", "{}", "\\", "🚢", "x" * 10_000, "\ud800"])
async def test_a_hostile_id_can_be_written_down(hostile: str) -> None:
    assert encoded(hostile).isprintable()
    assert "\0" not in encoded(hostile)
    encoded(hostile).encode()  # PostgreSQL takes it as text.
