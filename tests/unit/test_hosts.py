"""A peer has one name, however its address is written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.base.hosts import UNKNOWN, is_local, is_loopback, packed, peer_key, plain_host


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("0:0:0:0:0:FFFF:C000:0201", "192.0.2.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::2%2", "fe80::/64"),
        ("::1", "::1"),
        ("::2", "::/64"),
    ],
)
def test_a_peer_is_an_ipv4_address_or_an_ipv6_network(host: str, key: str) -> None:
    assert peer_key(host) == key


@pytest.mark.parametrize("host", ["", "uid 0", "127.evil", "127.1", "::g", "1.2.3.4\0", "\ud800", "1.2.3.4%eth0", "é"])
def test_hosts_that_are_no_address_are_one_peer_and_not_local(host: str) -> None:
    assert packed(host) is None
    assert peer_key(host) == UNKNOWN
    assert plain_host(host) == host
    assert not is_local(UNKNOWN)


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
    ],
)
def test_a_host_is_written_without_scope_and_prefix(host: str, plain: str) -> None:
    assert plain_host(host) == plain


@pytest.mark.parametrize(
    ("host", "near"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::1%lo", True)]
    + [(host, False) for host in ("", "localhost", "127.1", "128.0.0.1", "::", "::2", "::127.0.0.1", "192.0.2.1")],
)
def test_a_loopback_address_is_written_in_many_ways(host: str, near: bool) -> None:
    assert is_loopback(host) is near


@pytest.mark.parametrize("key", ["127.0.0.1", "127.255.0.9", "::1", "uid 1000", ""])
def test_loopback_and_users_of_unix_sockets_are_local(key: str) -> None:
    assert is_local(key)


@pytest.mark.parametrize("key", ["128.0.0.1", "12.7.0.0", "::/64", "2001:db8::/64", "1.127.0.0"])
def test_others_are_not_local(key: str) -> None:
    assert not is_local(key)


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_itself_with_and_without_its_prefix(address: ipaddress.IPv4Address) -> None:
    assert peer_key(str(address)) == peer_key(f"::ffff:{address}") == plain_host(f"::ffff:{address}") == str(address)


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_addresses_of_an_ipv6_network_are_one_peer(address: ipaddress.IPv6Address, other: int) -> None:
    neighbour = ipaddress.IPv6Address(int(address) >> 64 << 64 | other)
    if address.ipv4_mapped is None and neighbour.ipv4_mapped is None and 1 not in (int(address), int(neighbour)):
        assert peer_key(str(address)) == peer_key(str(neighbour))
        assert ipaddress.ip_network(peer_key(str(address))).prefixlen == 64


@given(st.text())
def test_anything_has_a_key(host: str) -> None:
    assert len(peer_key(host)) <= 43


@pytest.mark.parametrize("function", [peer_key, plain_host])
def test_only_so_many_hosts_are_remembered(function: object) -> None:
    remembered = function.cache_info().maxsize  # type: ignore[attr-defined]
    assert remembered == 16384
