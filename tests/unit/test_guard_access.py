"""Who may come by networks and by the time of day."""

from __future__ import annotations

import ipaddress
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.base.errors import UserError
from netsvc.base.networks import LONGEST_FILE, MOST_LINES, Access
from netsvc.plan.limits import parse_limits, within

FORM = "write an address or network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, or all"
READABLE = "name a readable text file with one network per line"


def test_with_deny_alone_all_others_may_come() -> None:
    access = Access(None, ["10.0.0.0/8", "2001:db8::/32"])
    assert [access.refusal(host) for host in ("10.1.2.3", "2001:db8::1")] == ["deny", "deny"]
    assert [access.refusal(host) for host in ("11.0.0.1", "2001:db9::1", "::1")] == ["", "", ""]


def test_with_allow_nobody_else_may_come() -> None:
    access = Access(["10.0.0.0/8"], None)
    assert [access.refusal(host) for host in ("10.1.2.3", "11.0.0.1", "::1")] == ["", "allow", "allow"]
    both = Access(["10.0.0.0/8"], ["10.1.0.0/16"])
    assert [both.refusal(host) for host in ("10.2.0.0", "10.1.0.0", "11.0.0.1")] == ["", "deny", "allow"]


def test_an_empty_allow_lets_nobody_come_and_an_empty_deny_everybody() -> None:
    assert Access([], None).refusal("192.0.2.1") == "allow"
    assert Access(None, []).refusal("192.0.2.1") == ""


def test_the_most_specific_network_decides() -> None:
    access = Access(["all", "10.1.2.0/24"], ["10.0.0.0/8", "10.1.2.3"])
    hosts = ("11.0.0.1", "10.9.9.9", "10.1.2.4", "10.1.2.3")
    assert [access.refusal(host) for host in hosts] == ["", "deny", "", "deny"]


def test_of_equal_networks_deny_decides() -> None:
    assert Access(["192.0.2.0/24"], ["192.0.2.9/24"]).refusal("192.0.2.1") == "deny"
    assert Access(["all"], ["all"]).refusal("::1") == "deny"


def test_all_is_every_address_of_both_kinds() -> None:
    access = Access(["192.0.2.1"], ["all"])
    assert [access.refusal(host) for host in ("192.0.2.1", "192.0.2.2", "2001:db8::1")] == ["", "deny", "deny"]


def test_an_ipv4_address_is_the_same_in_an_ipv6_one() -> None:
    access = Access(None, ["192.0.2.0/24"])
    assert access.refusal("::ffff:192.0.2.9") == "deny"
    assert Access(None, ["::ffff:192.0.2.0/120"]).refusal("192.0.2.9") == "deny"
    assert Access(None, ["::ffff:192.0.2.9"]).refusal("192.0.2.9") == "deny"
    # The IPv6 addresses are not the IPv4 ones.
    assert Access(None, ["::/0"]).refusal("192.0.2.9") == ""
    assert Access(None, ["0.0.0.0/0"]).refusal("::c000:209") == ""


def test_the_scope_of_an_address_does_not_matter() -> None:
    access = Access(None, ["fe80::1%eth0", "fe80:1::%eth0/32"])
    hosts = ("fe80::1%eth1", "fe80::1", "fe80:1::5%eth0", "fe80::2%eth0")
    assert [access.refusal(host) for host in hosts] == ["deny", "deny", "deny", ""]


def test_what_is_no_address_gets_past_no_list() -> None:
    assert Access(None, ["10.0.0.0/8"]).refusal("trust.me") == "deny"
    assert Access(["all"], None).refusal("trust.me") == "allow"


@pytest.mark.parametrize("network", ["10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", "10.7.7.7/08", "10.0.0.0/8"])
def test_a_network_may_be_written_as_python_reads_it(network: str) -> None:
    access = Access(None, [network])
    assert [access.refusal(host) for host in ("10.200.0.1", "11.0.0.0")] == ["deny", ""]


NETWORKS = st.lists(st.ip_addresses().flatmap(lambda a: st.tuples(st.just(a), st.integers(0, a.max_prefixlen))))
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def canonical(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the IPv4 network that a network of IPv4-mapped addresses is; any other as it is."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        address = int(network.network_address) - int(MAPPED.network_address)
        return ipaddress.IPv4Network((address, network.prefixlen - 96))
    return network


@example(allow=[], deny=[(MAPPED.network_address, 96)], strangers=[ipaddress.ip_address("192.0.2.1")])
@example(
    allow=[(ipaddress.ip_address("::ffff:192.0.2.0"), 120)],
    deny=[(ipaddress.ip_address("192.0.0.0"), 8), (ipaddress.ip_address("::"), 0)],
    strangers=[ipaddress.ip_address("::ffff:192.0.2.1"), ipaddress.ip_address("::ffff:10.0.0.1")],
)
@given(allow=NETWORKS, deny=NETWORKS, strangers=st.lists(st.ip_addresses()))
def test_the_verdict_is_that_of_the_longest_match(
    allow: list[tuple[ipaddress.IPv4Address, int]],
    deny: list[tuple[ipaddress.IPv4Address, int]],
    strangers: list[ipaddress.IPv4Address],
) -> None:
    written = [
        (ipaddress.ip_network(pair, strict=False), verdict)
        for pairs, verdict in ((allow, ""), (deny, "deny"))
        for pair in pairs
    ]
    access = Access([str(net) for net, word in written if not word], [str(net) for net, word in written if word])
    networks = [(canonical(network), verdict) for network, verdict in written]
    for address in [*strangers, *(address for address, _ in allow + deny)]:
        meant = getattr(address, "ipv4_mapped", None) or address
        matches = [(net.prefixlen, verdict) for net, verdict in networks if meant in net]
        assert access.refusal(str(address)) == (max(matches)[1] if matches else "allow")


def test_a_file_has_a_network_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_bytes(
        b"\xef\xbb\xbf# our own list, \xff\n192.0.2.0/24   # office\r\n\n  2001:db8::/32\n10.0.0.0/255.0.0.0#x\n::1"
    )
    access = Access(None, ["198.51.100.1", f"@{file}"])
    for host in ("192.0.2.1", "2001:db8::5", "10.9.9.9", "::1", "198.51.100.1"):
        assert access.refusal(host) == "deny"
    assert access.refusal("198.51.100.2") == ""


def test_a_file_may_say_all_and_may_be_empty(tmp_path: Path) -> None:
    everybody, nobody = tmp_path / "everybody", tmp_path / "nobody"
    everybody.write_text("all\n")
    nobody.write_text("")
    assert Access(None, [f"@{everybody}"]).refusal("192.0.2.1") == "deny"
    assert Access([f"@{nobody}"], None).refusal("192.0.2.1") == "allow"


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_text("10.0.0.0/8\n10.0.0.300\n\n@other\n1.2.3.4/33\n10.0.0.0 10.0.0.1\n")
    with pytest.raises(UserError) as caught:
        Access(["10.0.0.0/40", f"@{file}"], ["nonsense"])
    assert caught.value.errors == (
        f"allow 10.0.0.0/40: {FORM}",
        f"{file}:2: 10.0.0.300 (allow): {FORM}",
        f"{file}:4: @other (allow): {FORM}",
        f"{file}:5: 1.2.3.4/33 (allow): {FORM}",
        f"{file}:6: 10.0.0.0 10.0.0.1 (allow): {FORM}",
        f"deny nonsense: {FORM}",
    )


def test_of_many_wrong_lines_a_few_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_bytes(b"\x1b[2J" + b"x" * 500 + b"\n" + b"?\n" * 9999)
    with pytest.raises(UserError) as caught:
        Access(None, [f"@{file}"])
    assert len(caught.value.errors) == 6
    assert caught.value.errors[0].startswith(f"{file}:1: \\x1b[2Jxxx")
    assert len(caught.value.errors[0]) < len(str(file)) + 200
    assert caught.value.errors[5] == f"{file}: 9995 more such lines"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, reason in (
        (tmp_path / "gone", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (fifo, "not a regular file"),
        (tmp_path / "x\0y", ""),
    ):
        with pytest.raises(UserError) as caught:
            Access(None, [f"@{path}"])
        shown = str(path).replace("\0", "\\x00")
        [line] = caught.value.errors
        assert line.startswith(f"deny @{shown}: {reason}")
        assert line.endswith(READABLE)


def test_a_file_is_at_most_so_long(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_bytes(b"192.0.2.1\n".ljust(LONGEST_FILE, b"#"))
    assert Access(None, [f"@{file}"]).refusal("192.0.2.1") == "deny"
    file.write_bytes(b"192.0.2.1\n".ljust(LONGEST_FILE + 1, b"#"))
    with pytest.raises(UserError, match="1048576 bytes"):
        Access(None, [f"@{file}"])


def test_a_file_has_at_most_so_many_lines(tmp_path: Path) -> None:
    file = tmp_path / "banned"
    file.write_bytes(b"::1\n" * MOST_LINES)
    assert Access(None, [f"@{file}"]).refusal("::1") == "deny"
    file.write_bytes(b"::1\n" * MOST_LINES + b"#")
    with pytest.raises(UserError, match=r"banned: .*100000 lines"):
        Access(None, [f"@{file}"])


def test_a_verdict_is_the_same_when_asked_again_and_few_are_remembered() -> None:
    access = Access(None, ["10.0.0.0/9"])
    for _ in range(2):
        for number in range(0, 1 << 24, 1 << 11):
            host = str(ipaddress.IPv4Address((10 << 24) + number))
            assert access.refusal(host) == ("deny" if number < 1 << 23 else "")
    assert access.refusal.cache_info().currsize <= 4096


def moment(text: str) -> time.struct_time:
    # The first week of 2024 begins with a Monday.
    return time.strptime(f"2024 01 {text}", "%Y %W %a %H:%M")


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-18:00", ["Mon 08:00", "Sun 17:59"], ["Mon 07:59", "Mon 18:00", "Sun 00:00"]),
        ("mon-fri 08:00-18:00", ["Fri 12:00"], ["Sat 12:00", "Sun 12:00"]),
        ("22:00-06:00", ["Mon 22:00", "Mon 05:59", "Sun 23:59", "Mon 00:00"], ["Mon 06:00", "Mon 21:59"]),
        ("sun 22:00-06:00", ["Sun 22:00", "Mon 05:59"], ["Sun 05:59", "Mon 06:00", "Mon 22:00"]),
        ("fri-mon 00:00-24:00", ["Fri 00:00", "Mon 23:59", "Sun 12:00"], ["Tue 00:00", "Thu 23:59"]),
        ("mon 08:00-12:00, tue/thu 13:00-17:00", ["Mon 08:00", "Thu 16:59"], ["Tue 08:00", "Mon 13:00"]),
        ("mon 24:00-02:00", ["Tue 00:00", "Tue 01:59"], ["Mon 23:59", "Tue 02:00", "Mon 01:00"]),
    ],
)
def test_hours_are_spans_of_local_days(hours: str, inside: list[str], outside: list[str]) -> None:
    spans = parse_limits({"hours": hours})["hours"]
    assert [text for text in inside if not within(spans, moment(text))] == []
    assert [text for text in outside if within(spans, moment(text))] == []
