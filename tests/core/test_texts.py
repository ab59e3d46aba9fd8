"""`Text` and `VisibleText`, by themselves and in the places of a request where a text can stand."""

import json
import unicodedata
from typing import Annotated, Any, Optional

import pytest
from fastapi import APIRouter, Form, Header, Path, Query
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from app.core.config import Settings
from app.core.schemas import RequestModel, Text, VisibleText, may_be_omitted
from app.core.setup import create_application
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

Body = Annotated[str, Text(20)]
REFUSED = [
    "\x00",
    "a\x00b",
    "\x0b",
    "\x0c",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\ud800",
    "a\udfffb",
    "\u202e",
    "\u2066",
    "x" * 21,
]


@pytest.mark.parametrize("value", REFUSED)
def test_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Body).validate_python(value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("", ""),
        ("one\ntwo", "one\ntwo"),
        ("one\r\ntwo\rthree\n\r", "one\ntwo\nthree\n\n"),
        ("one\u2028two\u2029", "one\ntwo\n"),
        ("\tindented\t", "\tindented\t"),
        ("    code\n  \n", "    code\n  \n"),
        ("e\u0301", "\u00e9"),
        ("\r\n" * 20, "\n" * 20),
        ("\u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f680", "\u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f680"),
        ("x" * 20, "x" * 20),
    ],
)
def test_kept(value: str, kept: str) -> None:
    assert TypeAdapter(Body).validate_python(value) == kept
    assert TypeAdapter(Body).validate_python(kept) == kept, "once is enough"


def test_a_text_that_normalisation_lengthens_is_refused() -> None:
    lengthened = "\ufb2c" * 8  # three characters each in NFC
    assert len(unicodedata.normalize("NFC", lengthened)) == 24
    with pytest.raises(ValidationError, match="at most 20 characters"):
        TypeAdapter(Body).validate_python(lengthened)


@pytest.mark.parametrize("value", ["", " \t\n", "\u200b", "\u3164\r\n"])
def test_a_text_may_have_to_show_something(value: str) -> None:
    assert TypeAdapter(Annotated[str, Text(20)]).validate_python(value) is not None
    with pytest.raises(ValidationError, match="a visible character"):
        TypeAdapter(Annotated[str, Text(20, blank=False)]).validate_python(value)
    assert TypeAdapter(Annotated[str, Text(20, blank=False)]).validate_python("\n a") == "\n a"


@pytest.mark.parametrize("kind", [Text(5), VisibleText(5)])
def test_an_optional_text_may_be_null(kind: Text | VisibleText) -> None:
    sources: list[Any] = [Annotated[str | None, kind], Annotated[Optional[str], kind]]  # noqa: UP045 -- both ways
    for source in sources:
        adapter: TypeAdapter[str | None] = TypeAdapter(source)
        assert adapter.validate_python(None) is None
        assert adapter.validate_python("a") == "a"
        with pytest.raises(ValidationError):
            adapter.validate_python("\x00")


@pytest.mark.parametrize("kind", [Text(5), VisibleText(5)])
def test_other_annotations_count_too(kind: Text | VisibleText) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(pattern="^a"), kind])
    assert adapter.validate_python("ab") == "ab"
    with pytest.raises(ValidationError, match="match pattern"):
        adapter.validate_python("b")


@pytest.mark.parametrize("source", [list[str], dict[str, str], int, bytes, str | int])
def test_what_is_no_text_is_refused_when_the_model_is_built(source: Any) -> None:
    with pytest.raises(TypeError, match=r"list\[Annotated\[str, Text"):
        TypeAdapter(Annotated[source, Text(5)])


def test_the_schema_says_what_is_refused() -> None:
    schema = TypeAdapter(Annotated[str | None, Text(5, blank=False)]).json_schema()
    assert schema["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert schema["maxLength"] == 5
    assert "\\x00" in schema["not"]["pattern"]


class PostCreate(RequestModel):
    body: Annotated[str, Text(20, blank=False)]
    summary: Body | None = None
    notes: list[Body] = Field(default_factory=list)
    labels: dict[Annotated[str, VisibleText(10)], Body] = Field(default_factory=dict)


class PostUpdate(RequestModel):
    body: Body = may_be_omitted()


async def test_every_place_of_a_request(settings: Settings) -> None:
    router = APIRouter()

    @router.post("/post")
    async def create(values: PostCreate) -> PostCreate:
        return values

    @router.patch("/post")
    async def update(values: PostUpdate) -> list[str]:
        return sorted(values.model_fields_set)

    @router.get("/search/{word}")
    async def search(
        word: Annotated[str, Text(20), Path()],
        q: Annotated[Body | None, Query()] = None,
        tag: Annotated[list[Body], Query()] = [],  # noqa: B006 -- FastAPI copies it
        x_note: Annotated[Body, Header()] = "",
    ) -> list[Any]:
        return [word, q, tag, x_note]

    @router.post("/form")
    async def take_form(text: Annotated[Body, Form()]) -> str:
        return text

    good = {"body": "a\r\nb", "summary": None, "notes": ["\r", "x"], "labels": {" k ": "\r\n"}}
    async with client_of(create_application(router, settings)) as client:
        client.base_url = client.base_url.copy_with(path="/")
        answer = await client.post("post", json=good)
        assert answer.json() == {"body": "a\nb", "summary": None, "notes": ["\n", "x"], "labels": {"k": "\n"}}
        for bad in (
            {"body": "\x00"},
            {"body": "\ud800"},
            {"body": " \n"},
            {"summary": "a\x00"},
            {"notes": ["fine", "\x0b"]},
            {"labels": {"k": "\x1b"}},
            {"labels": {"\n": "v"}},
            {"labels": {"\ud800": "v"}},
        ):
            body = json.dumps(good | bad).encode()
            refused = await client.post("post", content=body, headers={"Content-Type": "application/json"})
            assert refused.status_code == 422, bad
            assert refused.json()["type"] == "urn:problem-type:invalid-request"
        assert (await client.patch("post", json={})).json() == []
        assert (await client.patch("post", json={"body": None})).status_code == 422
        assert (await client.get("search/w", params={"q": "a\r\nb", "tag": ["\r"]})).json() == ["w", "a\nb", ["\n"], ""]
        for query in ("q=%00", "tag=a&tag=%1b", "q=" + "x" * 21, "q=%E2%80%AE"):
            assert (await client.get(f"search/w?{query}")).status_code == 422, query
        assert (await client.get("search/%00")).status_code == 422
        assert (await client.get("search/w", headers={"X-Note": "a\x0b"})).status_code == 422
        assert (await client.post("form", data={"text": "a\r\nb"})).json() == "a\nb"
        assert (await client.post("form", data={"text": "\x00"})).status_code == 422
