"""What the documents tell people to ask the API, and what they say it answers."""

import json
import shutil

import pytest

from tests.docs.blocks import Block, all_blocks
from tests.docs.forms import form_of, json_values, refuse_other_keys, refuse_other_lines
from tests.docs.sessions import Api


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, as the documents do")
@pytest.mark.parametrize("block", all_blocks("api"), ids=lambda block: block.place)
def test_a_session(api: Api, block: Block) -> None:
    printed = api.run(block)
    for shown in block.output:
        if shown.language == "json":
            values, answers = json_values(shown.text), json_values(printed)
            for value, answer in zip(values, answers[-len(values) :], strict=True):
                refuse_other_keys(value, answer)
        else:
            refuse_other_lines(shown.text, printed)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, as the documents do")
@pytest.mark.parametrize("text", ["curl -s $API/nowhere", "curl -s http://127.0.0.1:8000/nowhere", "false", "curl $NO"])
def test_a_session_with_an_error_fails(api: Api, text: str) -> None:
    with pytest.raises(AssertionError, match="broken"):
        api.run(Block("docs/broken.md:1", "sh", text))


@pytest.mark.parametrize("block", all_blocks("answer"), ids=lambda block: block.place)
def test_an_answer(api: Api, block: Block) -> None:
    refuse_other_keys(json.loads(block.text), api.ask(block.rest).json())


@pytest.mark.parametrize("block", all_blocks("headers"), ids=lambda block: block.place)
def test_headers(api: Api, block: Block) -> None:
    """The API gives each of them, in that form, but for how often a form is repeated."""
    answer = api.ask(block.rest)
    for line in filter(None, block.text.splitlines()):
        name, _, value = line.partition(": ")
        assert _items(value) >= _items(answer.headers[name]), name


def _items(value: str) -> set[str]:
    return {form_of(item.partition(";")[2]) for item in value.split(", ")}
