"""What users write becomes an address, or one line that says what an address is."""

from __future__ import annotations

import builtins
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.interfaces import Kind
from netsvc.plan.address import LONGEST_ADDRESS, MOST_PARTS, Address, parse_address

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
        ("65536", "from 0 to 65535"),
        ("99999999", "from 0 to 65535"),
        ("9" * 4000, "from 0 to 65535"),
        ("-1", ""),
        ("9001.0", ""),
        ("1_000", ""),
        ("٣", ""),
        ("localhost", ""),
        ("localhost:", ""),
        (":9001", ""),
        ("localhost:٣", "from 0 to 65535"),
        ("localhost:65536", "from 0 to 65535"),
        ("host name:80", ""),
        ("::1", ""),
        ("::1:9001", ""),
        ("[::1]", ""),
        ("[::1]9001", ""),
        ("[127.0.0.1]:9001", "127.0.0.1"),
        ("[::zz]:9001", "zz"),
        ("[]:9001", ""),
        ("host\n:9001", "control characters"),
        ("1" * (LONGEST_ADDRESS + 1), f"at most {LONGEST_ADDRESS} characters"),
        ("haproxy:" * MOST_PARTS + "9001", f"{MOST_PARTS} parts"),
        ("host\x00:9001", "control characters"),
        ("host\u202e:9001", "control characters"),
        ("host\udcff:9001", "control characters"),
    ],
)
def test_what_is_no_address_is_refused_with_the_accepted_forms(text: str, reason: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"\bHOST:PORT, \[IPv6\]:PORT") as raised:
        parse_address(text, kind)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("udp:9001", "stream", "streams"),
        ("unixgram:/run/echo.sock", "stream", "streams"),
        ("tcp:9001", "datagram", "datagrams"),
        ("unix:/run/echo.sock", "datagram", "datagrams"),
        ("ssl:443:privateKey=key.pem", "datagram", "datagrams"),
        # Not a way to the inside of an Address, whose scheme for a port is called so.
        ("inet:80:x", "stream", ""),
        ("inet:80:x", "datagram", ""),
        ("tcp:", "stream", ""),
        ("tcp:70000", "stream", "from 0 to 65535"),
        ("tcp:http", "stream", "from 0 to 65535"),
        ("tcp6:interface=x", "stream", "from 0 to 65535"),
        ("tcp:9001\\", "stream", "backslash"),
        ("http://localhost:80", "datagram", ""),
        ("udp:", "datagram", ""),
        ("udp:http", "datagram", "from 0 to 65535"),
        ("udp:interface=127.0.0.1", "datagram", "from 0 to 65535"),
        ("udp:9001:127.0.0.1:x", "datagram", "after udp:"),
        ("udp:9001:backlog=5", "datagram", "argument backlog"),
        ("udp:9001:interface=localhost", "datagram", "localhost"),
        ("udp:9001:interface=\\:\\:1", "datagram", "::1"),
        ("udp6:9001:interface=127.0.0.1", "datagram", "127.0.0.1"),
        ("udp6:9001:interface=::1", "datagram", "after udp6:"),
        ("udp:9001:interface=1.2.3.4\\", "datagram", "backslash"),
        ("unixgram:mode=660", "datagram", "path"),
        ("unix:@", "stream", "unix:@echo"),
        ("unixgram:@", "datagram", "name"),
        ("unix:@echo:mode=660", "stream", "leave out the mode"),
        ("unix:@echo:660", "stream", "leave out the mode"),
        ("haproxy:unix:@echo:mode=660", "stream", "leave out the mode"),
        ("unixgram:path=@echo:mode=660", "datagram", "leave out the mode"),
        ("239.1.2.3:9001", "stream", "for datagrams"),
        ("[ff02::7%eth0]:9001", "stream", "for datagrams"),
        ("tcp:9001:interface=239.1.2.3", "stream", "for datagrams"),
        ("proxy:trust=10.0.0.1:udp:9001", "datagram", "forged"),
        (f"unix:/{'x' * 107}", "stream", "107 bytes"),
        (f"unix:address=/{'x' * 107}:mode=660", "stream", "107 bytes"),
        (f"unix:/{'é' * 54}", "stream", "107 bytes"),
        (f"haproxy:unix:/{'x' * 107}", "stream", "107 bytes"),
        (f"unix:@{'x' * 108}", "stream", "108 bytes"),
        (f"unixgram:/{'x' * 107}", "datagram", "107 bytes"),
        (f"unixgram:path=/{'x' * 107}", "datagram", "107 bytes"),
        ("unix:/x:backlog=2147483648", "stream", "2147483647"),
        (f"tcp:1:backlog={'9' * 4000}", "stream", "2147483647"),
        (f"{'x' * 64}:1", "stream", "63"),
        (f"{'ü' * 63}:1", "datagram", "63"),
        (f"{'x.' * 127}:1", "stream", "253"),
        ("a..b:1", "stream", "63"),
        ("unixgram:/x:mode=888", "datagram", "octal"),
        ("unixgram:/x:mode=rw", "datagram", "octal"),
        ("unixgram:a=b", "datagram", "argument a"),
        ("systemd:domain=INET", "datagram", "index=NUMBER"),
        ("systemd:domain=INET:index=0:name=x", "stream", "index=NUMBER"),
        ("systemd:name=", "stream", "index=NUMBER"),
        ("systemd:domain=IPX:name=x", "stream", "domain=INET, INET6 or UNIX"),
        ("systemd:INET:0:1", "stream", "FileDescriptorName="),
        ("systemd:x:colour=red", "datagram", "FileDescriptorName="),
        ("systemd:domain=INET:index=-1", "datagram", "index is"),
        ("systemd:domain=INET:index=first", "datagram", "index is"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_its_fault_and_the_accepted_forms(text: str, kind: Kind, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\bHOST:PORT\b") as raised:
        parse_address(text, kind)
    assert reason in str(raised.value)
    assert ("udp:PORT" if kind == "datagram" else "tcp:PORT") in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        f"unix:/{'x' * 106}",
        f"unix:mode=660:address=/{'x' * 106}",
        f"unix:/{'é' * 53}",
        f"unix:@{'x' * 107}",
        f"{'x' * 63}:1",
        f"{'x.' * 126}:1",
        "xn--bcher-kva.example:1",
        "bücher.example:1",
        f"tls:1:cert=/{'x' * 200}",
        "tcp:1:backlog=2147483647",
    ],
)
def test_what_is_as_long_as_the_system_accepts_is_an_address(text: str) -> None:
    assert parse_address(text, "stream").text == text


def test_an_address_has_as_many_parts_and_characters_as_it_may() -> None:
    text = "tcp:9001" + ":a=b" * (MOST_PARTS - 2)
    text += "b" * (LONGEST_ADDRESS - len(text))
    assert parse_address(text, "stream").port == 9001


def test_the_longest_abstract_name_is_what_the_system_can_bind() -> None:
    for length in (107, 108):
        name = "netsvc-".ljust(length, "x")
        with (
            socket.socket(socket.AF_UNIX) as bound,
            nullcontext() if length == 107 else pytest.raises(OSError, match="AF_UNIX"),
        ):
            bound.bind(f"\0{name}")


def test_the_longest_path_of_a_unix_socket_is_what_the_system_can_bind(tmp_path: Path) -> None:
    for length in (107, 108):
        path = f"{tmp_path}/".ljust(length, "x")
        with socket.socket(socket.AF_UNIX) as bound:
            fits = length == 107
            with nullcontext() if fits else pytest.raises(OSError, match=r"AF_UNIX"):
                bound.bind(path)
        with nullcontext() if fits else pytest.raises(ValueError, match="107"):
            parse_address(f"unix:{path}", "stream")


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
