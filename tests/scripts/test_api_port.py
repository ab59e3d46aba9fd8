"""Ports for the API: one line for those that can't be."""

import pytest

from scripts import api_port
from scripts.api_port import check_port, read_port
from scripts.embedded import ServiceError


def test_an_empty_port_is_the_usual_one() -> None:
    assert read_port("") == 8000
    assert read_port("8001") == 8001


@pytest.mark.parametrize("text", ["abc", "0", "65536", "-1", "8000.0", "8_000", "٣"])
def test_a_port_that_cannot_be_is_one_line(text: str) -> None:
    with pytest.raises(ServiceError) as refused:
        read_port(text)
    assert str(refused.value) == f"PORT must be a TCP port, 1 to 65535, not {text}."


@pytest.mark.parametrize(("port", "other"), [(8000, 8001), (65534, 65535), (65535, 8000), (80, 8000)])
def test_another_port_is_one_that_can_be(monkeypatch: pytest.MonkeyPatch, port: int, other: int) -> None:
    monkeypatch.setattr(api_port, "port_problem", lambda _: "is taken")
    with pytest.raises(ServiceError, match=f"^Port {port} is taken: `make run PORT={other}`\\.$"):
        check_port(port)
