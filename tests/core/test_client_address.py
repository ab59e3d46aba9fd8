"""Where a request comes from: whose word counts, and what of it."""

from pathlib import Path

import pytest

from app.core.client_address import TrustedProxies, network_of
from app.core.config import ProxySettings, RateLimitMode, Settings, SettingsError

OURS = ("10.0.0.0/8", "2001:db8:aa::/48")
PEER = "10.0.0.1"
CLIENT = "192.0.2.7"


def client_of(*said: str, hops: int = 1, peer: str | None = PEER) -> str | None:
    return TrustedProxies([*OURS, "unix"], hops).client_of(peer, said)


def test_without_proxies_nobody_is_believed() -> None:
    proxies = TrustedProxies([], 1)
    for peer in ("127.0.0.1", "::1", "10.0.0.1", "unix", "", None):
        assert peer not in proxies


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (
            "10.0.0.0/8",
            ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3", "10.0.0.1:8080"],
            ["11.0.0.0", "9.255.255.255"],
        ),
        # Whoever writes an address within a network means the network.
        ("10.1.2.3/8", ["10.200.0.1"], ["11.0.0.1"]),
        ("192.0.2.7", ["192.0.2.7", " 192.0.2.7 "], ["192.0.2.8", "192.0.2.6"]),
        ("::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "::10.1.2.3"]),
        ("::ffff:192.0.2.7", ["192.0.2.7", "::ffff:c000:207"], ["192.0.2.8"]),
        ("2001:db8::/32", ["2001:db8::1", "[2001:db8::1]:443", "2001:DB8::1"], ["2001:db9::1", "10.0.0.1"]),
        ("2001:db8::1/32", ["2001:db8:ffff::"], ["2001:db9::"]),
        ("fe80::/10", ["fe80::1", "fe80::1%eth0"], ["fec0::1"]),
        # All of IPv6 is none of IPv4, and the other way round.
        ("::/0", ["2001:db8::1", "::1"], ["10.0.0.1", "::ffff:10.0.0.1"]),
        ("0.0.0.0/0", ["10.0.0.1", "::ffff:10.0.0.1"], ["2001:db8::1"]),
        ("unix", [None], ["127.0.0.1", "unix", ""]),
    ],
)
def test_networks(networks: str, inside: list[str | None], outside: list[str | None]) -> None:
    proxies = TrustedProxies(networks.split(","), 1)
    assert [peer for peer in inside if peer not in proxies] == []
    assert [peer for peer in [*outside, "nonsense", "localhost"] if peer in proxies] == []
    assert (None in proxies) is (networks == "unix")


@pytest.mark.parametrize(
    "broken", ["*", "", "localhost", "10.0.0.0/33", "10.0.0/8", "10.0.0.1-9", "::/129", "Unix", "all"]
)
def test_what_is_no_network_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TrustedProxies(["10.0.0.0/8", broken], 1)


def test_one_hop_is_what_our_proxy_has_added() -> None:
    assert client_of(CLIENT) == CLIENT
    assert client_of(f"203.0.113.9, {CLIENT}") == CLIENT
    assert client_of(f"203.0.113.9,198.51.100.4 ,\t{CLIENT} ") == CLIENT


def test_whatever_stands_left_of_our_entries_never_counts() -> None:
    for invented in ("1.2.3.4", "10.0.0.9", PEER, "unknown", ",,,", "", "x" * 9_000, "1.2.3.4," * 1_000):
        assert client_of(f"{invented},{CLIENT}") == CLIENT
        assert client_of(invented, CLIENT) == CLIENT
        assert client_of(f"{invented},{CLIENT},10.0.0.2", hops=2) == CLIENT
        assert client_of(invented, CLIENT, "10.0.0.2", hops=2) == CLIENT


def test_two_hops_are_two_entries_of_which_the_right_one_is_ours() -> None:
    assert client_of(f"{CLIENT}, 10.0.0.2", hops=2) == CLIENT
    assert client_of(f"1.2.3.4, {CLIENT}, 10.0.0.2", hops=2) == CLIENT
    # Somebody who asked the inner proxy directly: what they claim to have been told is their own word.
    assert client_of(f"1.2.3.4, {CLIENT}", hops=2) == CLIENT
    # Only so many proxies are ours: a third entry is not, whatever it says.
    assert client_of("1.2.3.4, 10.0.0.3, 10.0.0.2", hops=2) == "10.0.0.3"
    assert client_of("1.2.3.4, 10.0.0.3, 10.0.0.2", hops=3) == "1.2.3.4"


def test_one_hop_does_not_walk_on_through_other_proxies() -> None:
    assert client_of(f"{CLIENT}, 10.0.0.2") == "10.0.0.2"


def test_fewer_entries_than_hops_are_all_there_is() -> None:
    assert client_of(CLIENT, hops=10) == CLIENT
    assert client_of("10.0.0.2", hops=10) == "10.0.0.2"
    assert client_of("10.0.0.3, 10.0.0.2", hops=10) == "10.0.0.3"


def test_several_header_lines_are_one_list_in_their_order() -> None:
    assert client_of("203.0.113.9", CLIENT) == CLIENT
    assert client_of(CLIENT, "10.0.0.2", hops=2) == CLIENT
    assert client_of(f"1.2.3.4, {CLIENT}", "10.0.0.3, 10.0.0.2", hops=3) == CLIENT


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("192.0.2.7:51234", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:80", "192.0.2.7"),
    ],
)
def test_addresses_as_proxies_write_them(written: str, address: str) -> None:
    assert client_of(f"1.2.3.4, {written}") == address


@pytest.mark.parametrize(
    "nothing",
    [
        "unknown",
        "_hidden",
        "",
        " ",
        "garbage",
        "192.0.2",
        "192.0.2.256",
        "0192.0.2.7",
        "for=192.0.2.7",
        "[",
        "[]:80",
        ":::",
        "\0",
        "é",
    ],
)
def test_an_entry_that_is_no_address_leaves_whoever_asked_us(nothing: str) -> None:
    assert client_of(nothing) == PEER
    assert client_of(f"1.2.3.4, {nothing}") == PEER
    # With two hops it is the nearer proxy's caller that is known, and nothing left of what cannot be read.
    assert client_of(f"1.2.3.4, {nothing}, 10.0.0.2", hops=2) == "10.0.0.2"
    assert client_of(f"1.2.3.4, {nothing}, 10.0.0.2", hops=3) == "10.0.0.2"
    assert client_of(f"1.2.3.4, {nothing}", hops=2) == PEER
    assert client_of(f"{nothing}, {CLIENT}", hops=2) == CLIENT


def test_without_any_entry_it_is_whoever_asked_us() -> None:
    assert client_of() == PEER
    assert client_of("") == PEER
    assert client_of(peer=None) is None


def test_a_proxy_behind_a_socket_says_who_asked_it() -> None:
    assert client_of(CLIENT, peer=None) == CLIENT
    assert client_of(f"1.2.3.4, {CLIENT}", peer=None) == CLIENT
    assert client_of("unknown", peer=None) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        (None, "unknown"),
        ("", "unknown"),
        ("testclient", "unknown"),
        ("{x}:log", "unknown"),
    ],
)
def test_what_counts_as_one_place(address: str | None, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("written", "networks"),
    [
        ("", ()),
        (" , ", ()),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("10.0.0.0/8, unix,2001:db8::/32 ,", ("10.0.0.0/8", "unix", "2001:db8::/32")),
        ('["10.0.0.0/8", "unix"]', ("10.0.0.0/8", "unix")),
    ],
)
def test_trusted_proxies_are_a_list(monkeypatch: pytest.MonkeyPatch, written: str, networks: tuple[str, ...]) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", written)
    assert networks == ProxySettings().TRUSTED_PROXIES
    assert networks == Settings().TRUSTED_PROXIES


def test_trusted_proxies_are_a_list_in_the_file_and_in_code(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text('TRUSTED_PROXIES="10.0.0.0/8,unix"\n')
    for group in ProxySettings, Settings:
        in_file, in_code = group(_env_file=file), group(TRUSTED_PROXIES=("10.0.0.0/8", "unix"))
        assert in_file.TRUSTED_PROXIES == in_code.TRUSTED_PROXIES == ("10.0.0.0/8", "unix")


def test_the_settings_make_the_proxies() -> None:
    proxies = ProxySettings(TRUSTED_PROXIES=("10.0.0.0/8",), TRUSTED_PROXY_HOPS=2).trusted_proxies
    assert "10.0.0.1" in proxies
    assert proxies.client_of(PEER, [f"1.2.3.4,{CLIENT},10.0.0.2"]) == CLIENT
    assert PEER not in ProxySettings().trusted_proxies


PROXIES = (
    "TRUSTED_PROXIES must be a comma-separated list of the networks and addresses of your proxies, such as 10.0.0.0/8; "
    "unix for those that connect through a socket."
)
HOPS = "TRUSTED_PROXY_HOPS must be the number of proxies that a request passes one after the other, 1 to 10."
MODE = "RATE_LIMIT_MODE must be one of enforce, shadow, off."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(
            ("TRUSTED_PROXIES", value, PROXIES)
            for value in (
                "*",
                "localhost",
                "10.0.0.0/33",
                "10.0.0.0/8 10.1.0.0/16",
                "10.0.0.0/8,nginx",
                '["10.0.0.0/8"',
            )
        ),
        *(("TRUSTED_PROXY_HOPS", value, HOPS) for value in ("0", "11", "-1", "1.5", "two")),
        *(("RATE_LIMIT_MODE", value, MODE) for value in ("on", "true", "ENFORCE", "shadow,off")),
    ],
)
def test_a_broken_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == message


def test_limits_are_enforced_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().RATE_LIMIT_MODE is RateLimitMode.ENFORCE
    for mode in RateLimitMode:
        monkeypatch.setenv("RATE_LIMIT_MODE", mode)
        assert Settings().RATE_LIMIT_MODE is mode
