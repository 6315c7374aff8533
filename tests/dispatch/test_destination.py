"""Holds the destinations of deliveries to public unicast addresses, in every way to write another one."""

import pytest

from server.dispatch.destination import is_public, origin_of

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",  # noqa: S104
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.1",
        "192.0.0.170",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:224.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::",
        "fc00::1",
        "fd00::",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["::ffff:0:127.0.0.1", "::ffff:0:a00:1", "5f00::1", "3fff::1", "4000::1"])
def test_translated_and_unassigned_ones_are_not_public_either(address: str) -> None:
    """Only 2000::/3 is given out for unicast (RFC 4291, 2.4); ::ffff:0:0:0/96 leads to IPv4 (RFC 2765)."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "2130706433",
        "0x7f.1",
        "017700000001",
        "127.1",
        "0177.0.0.1",
        "localhost",
        "localhost.",
        "",
        "1.2.3.4.5",
        "[::1]",
    ],
)
def test_what_is_no_address_never_counts_as_public(address: str) -> None:
    """Names and old notations are for the resolver; what it finds is what is asked about here."""
    with pytest.raises(ValueError, match=r"."):
        is_public(address)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://h/p?q#f", "http://h"),
        ("HTTP://Host.Test:80/", "http://host.test"),
        ("https://h:443", "https://h"),
        ("https://h:80", "https://h:80"),
        ("http://h:443", "http://h:443"),
        ("http://127.0.0.1:8000/x", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/x", "http://[::1]:8000"),
        ("http://[::1]/", "http://[::1]"),
        ("http://listed@evil.test/", "http://evil.test"),
        ("http://h/:8000", "http://h"),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize("url", ["http://h:x/", "http://h:99999/", "http://[::1", "http://[x]/"])
def test_what_has_no_origin(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        origin_of(url)
