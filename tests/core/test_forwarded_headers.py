"""The scheme and the host that a trusted proxy reports: which entry counts, and what is refused."""

import pytest

from app.core.forwarded_headers import forwarded_host, forwarded_scheme


@pytest.mark.parametrize(
    ("values", "hops", "scheme"),
    [
        (["https"], 1, "https"),
        ([" HTTPS\t"], 1, "https"),
        (["http"], 1, "http"),
        # A proxy that appends does so at the right: what stands left of its entry is the caller's.
        (["https, http"], 1, "http"),
        (["http, https"], 1, "https"),
        (["https", "http"], 1, "http"),
        (["https, http"], 2, "https"),
        (["http, https, http"], 2, "https"),
        (["https"], 3, "https"),
        # Neither the rest of the value nor the next entry is taken instead.
        (["https,"], 1, None),
        (["https, "], 2, "https"),
        ([""], 1, None),
        ([","], 1, None),
        (["ftp"], 1, None),
        (["javascript"], 1, None),
        (["https://evil.example"], 1, None),
        (["https\x00"], 1, None),
        (["https\r\nX: y"], 1, None),
        (["https;http"], 1, None),
        (["hſttps"], 1, None),
        (["wss"], 1, None),
    ],
)
def test_schemes(values: list[str], hops: int, scheme: str | None) -> None:
    assert forwarded_scheme(values, hops) == scheme


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "api.example.com:8443",
        "API.example.com",
        "localhost",
        "my_service:80",
        "192.0.2.7",
        "192.0.2.7:65535",
        "[2001:db8::1]",
        "[2001:db8::1]:443",
        "[::ffff:192.0.2.7]",
        "xn--bcher-kva.example",
    ],
)
def test_hosts(host: str) -> None:
    assert forwarded_host([host], 1) == host
    assert forwarded_host([f"evil.example, {host}"], 1) == host
    assert forwarded_host(["evil.example", f" {host}, inner"], 2) == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "user@api.example.com",
        "user:word@api.example.com",
        "api.example.com/path",
        "api.example.com?query",
        "api.example.com#part",
        "api.example.com\\path",
        "https://api.example.com",
        "api example.com",
        "api.example.com\x00",
        "api.example.com\r\nX-Injected: 1",
        "api.example.com\x7f",
        "api.example.com:",
        "api.example.com:0",
        "api.example.com:65536",
        "api.example.com:999999999999",
        "api.example.com:80:90",
        "api.example.com:+80",
        "api.example.com:٣",
        "bücher.example",
        "[::1",
        "::1",
        "2001:db8::1",
        "[]",
        "[:::]",
        "[evil.example]",
        "[::1]evil.example",
        "[::1%25eth0]",
        "-" + "a" * 253,
        "a" * 254,
        "%65vil.example",
        "a;b",
        "a,",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert forwarded_host([host], 1) is None
    assert forwarded_host([f"api.example.com, {host}"], 1) is None
