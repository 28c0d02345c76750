"""What users write becomes an address, or one line that says what an address is."""

from __future__ import annotations

import builtins
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.address import Address, parse_address
from netsvc.interfaces import Kind

KINDS: tuple[Kind, ...] = ("stream", "datagram")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("9001", None, 9001),
        ("0", None, 0),
        ("65535", None, 65535),
        ("09001", None, 9001),
        ("0000000009001", None, 9001),
        (" 9001 ", None, 9001),
        ("127.0.0.1:9001", "127.0.0.1", 9001),
        ("localhost:0", "localhost", 0),
        ("my-host.example:80", "my-host.example", 80),
        ("onion:80", "onion", 80),
        ("[::1]:9001", "::1", 9001),
        ("[::]:9001", "::", 9001),
        ("[fe80::1%eth0]:9001", "fe80::1%eth0", 9001),
    ],
)
def test_a_port_with_or_without_a_host_is_the_same_for_both_kinds(
    text: str, host: str | None, port: int, kind: Kind
) -> None:
    assert parse_address(text, kind) == Address(text.strip(), kind, "inet", host, port)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("tcp:9001", "tcp"),
        ("tcp:0:interface=127.0.0.1:backlog=10", "tcp"),
        ("tcp:interface=127.0.0.1:port=9001", "tcp"),
        (r"tcp6:9001:interface=\:\:1", "tcp6"),
        ("unix:/run/echo.sock", "unix"),
        ("unix:/tmp/with space:mode=660", "unix"),
        ("unix:9001", "unix"),
        ("ssl:443", "ssl"),
        ("ssl:443:privateKey=key.pem:certKey=cert.pem", "ssl"),
        ("tls:pems:tcp:443", "tls"),
        ("haproxy:tcp:9001", "haproxy"),
        ("onion:80:controlPort=9051", "onion"),
    ],
)
def test_a_stream_endpoint_is_kept_whole_for_twisted_to_read(text: str, scheme: str) -> None:
    address = parse_address(text, "stream")
    assert (address.text, address.kind, address.scheme, address.arguments) == (text, "stream", scheme, {})


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("udp:9001", "0.0.0.0", 9001),
        ("udp:9001:interface=127.0.0.1", "127.0.0.1", 9001),
        ("udp:9001:127.0.0.1", "127.0.0.1", 9001),
        ("udp:interface=127.0.0.1:port=9001", "127.0.0.1", 9001),
        ("udp:port=9001", "0.0.0.0", 9001),
        ("udp:9001:interface=", "0.0.0.0", 9001),
        ("udp6:9001", "::", 9001),
        (r"udp6:9001:interface=\:\:1", "::1", 9001),
        (r"udp6:9001:interface=fe80\:\:1%eth0", "fe80::1%eth0", 9001),
    ],
)
def test_a_udp_endpoint_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert parse_address(text, "datagram") == Address(text, "datagram", "inet", host, port)


@pytest.mark.parametrize(
    ("text", "scheme", "arguments"),
    [
        ("unixgram:/run/echo.sock", "unixgram", {"path": "/run/echo.sock"}),
        ("unixgram:/run/echo.sock:mode=660", "unixgram", {"path": "/run/echo.sock", "mode": "660"}),
        ("unixgram:path=/run/echo.sock:mode=0600", "unixgram", {"path": "/run/echo.sock", "mode": "0600"}),
        ("unixgram:with space", "unixgram", {"path": "with space"}),
        (r"unixgram:C\:\\x", "unixgram", {"path": r"C:\x"}),
        (r"unixgram:a\=b", "unixgram", {"path": "a=b"}),
        ("unixgram:path=a=b", "unixgram", {"path": "a=b"}),
        ("systemd:domain=INET:name=echo", "systemd", {"domain": "INET", "name": "echo"}),
        ("systemd:INET6:0", "systemd", {"domain": "INET6", "index": "0"}),
        ("systemd:echo", "systemd", {"name": "echo"}),
        ("systemd:INET", "systemd", {"name": "INET"}),
        ("systemd:name=echo", "systemd", {"name": "echo"}),
    ],
)
def test_other_datagram_endpoints_are_read_here(text: str, scheme: str, arguments: dict[str, str]) -> None:
    address = parse_address(text, "datagram")
    assert address == Address(text, "datagram", scheme, arguments=arguments)
    assert address.arguments == arguments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("   ", ""),
        ("65536", "a port is a number from 0 to 65535"),
        ("99999999", "a port is a number from 0 to 65535"),
        ("9" * 5000, "a port is a number from 0 to 65535"),
        ("-1", ""),
        ("9001.0", ""),
        ("1_000", ""),
        ("٣", ""),
        ("localhost", ""),
        ("localhost:", ""),
        (":9001", ""),
        ("localhost:٣", "a port is a number from 0 to 65535"),
        ("localhost:65536", "a port is a number from 0 to 65535"),
        ("host name:80", ""),
        ("::1", ""),
        ("::1:9001", ""),
        ("[::1]", ""),
        ("[::1]9001", ""),
        ("[127.0.0.1]:9001", "127.0.0.1"),
        ("[::zz]:9001", "zz"),
        ("[]:9001", ""),
        ("host\n:9001", "control characters"),
        ("host\x00:9001", "control characters"),
        ("host\u202e:9001", "control characters"),
        ("host\udcff:9001", "control characters"),
    ],
)
def test_what_is_no_address_is_refused_with_the_accepted_forms(text: str, reason: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"an address is a port, HOST:PORT, \[IPv6\]:PORT") as raised:
        parse_address(text, kind)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("udp:9001", "stream", "udp: is not for streams"),
        ("unixgram:/run/echo.sock", "stream", "unixgram: is not for streams"),
        ("tcp:9001", "datagram", "tcp: is not for datagrams"),
        ("unix:/run/echo.sock", "datagram", "unix: is not for datagrams"),
        ("ssl:443:privateKey=key.pem", "datagram", "ssl: is not for datagrams"),
        # Not a way to the inside of an Address, whose scheme for a port is called so.
        ("inet:80:x", "stream", ""),
        ("inet:80:x", "datagram", ""),
        ("tcp:", "stream", ""),
        ("tcp:70000", "stream", "a port is a number"),
        ("tcp:http", "stream", "a port is a number"),
        ("tcp6:interface=x", "stream", "a port is a number"),
        ("tcp:9001\\", "stream", "a backslash stands before another character"),
        ("http://localhost:80", "datagram", ""),
        ("udp:", "datagram", ""),
        ("udp:http", "datagram", "a port is a number"),
        ("udp:interface=127.0.0.1", "datagram", "a port is a number"),
        ("udp:9001:127.0.0.1:x", "datagram", "too many parts after udp:"),
        ("udp:9001:backlog=5", "datagram", "udp: has no argument backlog; it takes interface, port"),
        ("udp:9001:interface=localhost", "datagram", "localhost"),
        ("udp:9001:interface=\\:\\:1", "datagram", "::1 is no IPv4 address"),
        ("udp6:9001:interface=127.0.0.1", "datagram", "127.0.0.1 is no IPv6 address"),
        ("udp6:9001:interface=::1", "datagram", "too many parts after udp6:"),
        ("udp:9001:interface=1.2.3.4\\", "datagram", "a backslash stands before another character"),
        ("unixgram:mode=660", "datagram", "unixgram: needs a path"),
        ("unixgram:/x:mode=888", "datagram", "mode is an octal number such as 660"),
        ("unixgram:/x:mode=rw", "datagram", "mode is an octal number such as 660"),
        ("unixgram:a=b", "datagram", "unixgram: has no argument a; it takes mode, path"),
        ("systemd:domain=INET", "datagram", "systemd: needs the name of a socket, or index=NUMBER"),
        ("systemd:domain=INET:index=0:name=x", "stream", "systemd: needs the name of a socket, or index=NUMBER"),
        ("systemd:name=", "stream", "systemd: needs the name of a socket, or index=NUMBER"),
        ("systemd:domain=IPX:name=x", "stream", "systemd: needs domain=INET, INET6 or UNIX, or none"),
        ("systemd:INET:0:1", "stream", "systemd: takes the name of a socket, FileDescriptorName= of its .socket unit"),
        ("systemd:x:colour=red", "datagram", "systemd: takes the name of a socket"),
        ("systemd:domain=INET:index=-1", "datagram", "index is the place"),
        ("systemd:domain=INET:index=first", "datagram", "index is the place"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_its_fault_and_the_accepted_forms(text: str, kind: Kind, reason: str) -> None:
    with pytest.raises(ValueError, match="an address is a port, HOST:PORT") as raised:
        parse_address(text, kind)
    assert reason in str(raised.value)
    assert ("udp:PORT" if kind == "datagram" else "tcp:PORT") in str(raised.value)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("9001", ""),
        ("unix:/x", ""),
        ("tls:9001:cert=a:key=b", " (TLS)"),
        ("ssl:9001", " (TLS)"),
        ("proxy:trust=127.0.0.1:9001", " (behind a proxy)"),
        ("haproxy:tcp:9001", " (behind a proxy)"),
        ("proxy:trust=127.0.0.1:guard:idle=5:tls:9001:cert=a:key=b", " (TLS, behind a proxy)"),
    ],
)
def test_what_is_not_seen_of_a_place_is_noted(text: str, note: str) -> None:
    assert parse_address(text, "stream").note == note


def test_addresses_of_the_same_words_are_equal_and_hash_alike() -> None:
    one, other = (parse_address("systemd:domain=INET:index=0", "datagram") for _ in range(2))
    assert {one: 1} == {other: 1}


PIECES = st.sampled_from(
    [":", "\\", "=", "[", "]", "::1", "udp", "udp6", "tcp", "unix", "unixgram", "systemd", "ssl", "inet", "port",
     "interface", "mode", "index", "name", "domain", "0", "9001", "127.0.0.1", "%", "\n", "\x00", "\u202e", "\udcff"]
)  # fmt: skip


@given(text=st.text() | st.lists(PIECES | st.text(max_size=3)).map("".join), kind=st.sampled_from(KINDS))
def test_any_text_is_an_address_or_a_value_error_of_one_printable_line(text: str, kind: Kind) -> None:
    try:
        address = parse_address(text, kind)
    except ValueError as error:
        line = str(error)
        wanted = "an address is"
    else:
        line = address.text
        wanted = text.strip()
        assert address.kind == kind
        assert 0 <= address.port <= 65535
    assert wanted in line
    assert line.splitlines() == [line]
    assert line.encode()


def test_reading_an_address_opens_and_resolves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str) -> Callable[..., Any]:
        def fail(*_: object, **__: object) -> Any:
            raise AssertionError(f"{name} was called")

        return fail

    monkeypatch.setattr(builtins, "open", forbidden("open"))
    for name in ("socket", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, forbidden(name))
    for text in ("9001", "localhost:9001", "ssl:443:privateKey=/nowhere.pem", "unix:/nowhere", "haproxy:tcp:9001"):
        parse_address(text, "stream")
    for text in ("9001", "localhost:9001", "udp:9001", "unixgram:/nowhere", "systemd:domain=INET:index=0"):
        parse_address(text, "datagram")
