"""Compares what a document shows with what there is: two texts or answers have one form, whatever their values are."""

import json
import re
from typing import Any

_CHANGING = (
    (r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)?", "TIME"),
    (r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "UUID"),
    (r"\b[0-9a-f]{12,64}\b", "HEX"),
    (r"\d+(?:\.\d+)?", "0"),
)


def form_of(line: str) -> str:
    """A line with what changes from one time to the next taken out."""
    for pattern, name in _CHANGING:
        line = re.sub(pattern, name, line)
    return line.strip()


def refuse_other_lines(shown: str, printed: str) -> None:
    """Raises: AssertionError for a line that is shown, and that nothing printed has the form of. `...` is left out."""
    forms = {form_of(line) for line in printed.splitlines()}
    for line in filter(None, map(str.strip, shown.splitlines())):
        assert line == "..." or form_of(line) in forms, f"nothing is printed in this form: {line}"


def json_values(text: str) -> list[Any]:
    """The JSON values that a text is made of, one after another, with or without lines between them."""
    decoder, values, text = json.JSONDecoder(), [], text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:].lstrip()
    return values


def keys_of(value: Any) -> Any:
    """What a JSON value is made of: its keys, and those of what is in it; of a list, its first item's."""
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items() if key != "progress"}
    if isinstance(value, list):
        return [keys_of(item) for item in value[:1]]
    return None


def refuse_other_keys(shown: Any, answered: Any) -> None:
    """Raises: AssertionError when an answer that is shown has other keys than the real one."""
    assert keys_of(shown) == keys_of(answered), (keys_of(shown), keys_of(answered))
