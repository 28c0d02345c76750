from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.base.text import is_unsafe
from netsvc.plan.address import SERVER_FORMS, ServerAddress, parse_server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9001", ServerAddress("tcp", "127.0.0.1", 9001, bare=True)),
        (" 9001 ", ServerAddress("tcp", "127.0.0.1", 9001, bare=True)),
        ("localhost:9001", ServerAddress("tcp", "localhost", 9001, bare=True)),
        ("[::1]:9001", ServerAddress("tcp", "::1", 9001, bare=True)),
        ("[fe80::1%eth0]:1", ServerAddress("tcp", "fe80::1%eth0", 1, bare=True)),
        ("例子.测试:9001", ServerAddress("tcp", "例子.测试", 9001, bare=True)),
        ("tcp:localhost:9001", ServerAddress("tcp", "localhost", 9001)),
        ("tcp:9001", ServerAddress("tcp", "127.0.0.1", 9001)),
        ("udp:[::1]:65535", ServerAddress("udp", "::1", 65535)),
        ("tls:example.com:443", ServerAddress("tls", "example.com", 443)),
        ("ssl:example.com:443", ServerAddress("tls", "example.com", 443)),
        ("unix:/run/echo.sock", ServerAddress("unix", path="/run/echo.sock")),
        ("unixgram:with:colon", ServerAddress("unixgram", path="with:colon")),
        ("tcp:udp:9", ServerAddress("tcp", "udp", 9)),
    ],
)
def test_reads_each_form(text: str, expected: ServerAddress) -> None:
    assert parse_server(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "HOST:PORT"),
        ("localhost", "HOST:PORT"),
        ("::1:9001", "brackets"),
        ("[::1", "HOST:PORT"),
        ("[localhost]:1", '"localhost"'),
        ("localhost:", ""),
        ("localhost:0", "65535"),
        ("65536", "65535"),
        ("localhost:٣", "65535"),
        ("9" * 5000, "65535"),
        ("http://localhost:80", "HOST:PORT"),
        ("a b:80", '"a b'),
        ("a\x1bc:80", "a\\x1bc"),
        ("tcp:", ""),
        ("unix:", ""),
        ("unix:a\0b", "NUL"),
        (f"unix:/{'x' * 107}", "107"),
        (f"unixgram:/{'x' * 107}", "107"),
        (f"{'x' * 64}:1", "63"),
    ],
)
def test_refuses_with_the_reason_and_the_forms_in_one_safe_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="an address is") as caught:
        parse_server(text)
    message = str(caught.value)
    assert says in message
    assert message.endswith(SERVER_FORMS)
    assert not any(is_unsafe(character) for character in message)
    assert len(message) < 600


@given(st.text(max_size=40) | st.from_regex(r"(tcp:|udp:|tls:|ssl:|unix:)?(\[[0-9a-f:%]*\]|[a-z.]*)?:?[0-9]{0,6}"))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse_server(text)
    except ValueError:
        return
    assert not any(is_unsafe(character) for character in str(address))
    if not address.path:
        again = parse_server(str(address))
        assert (again.scheme, again.host, again.port) == (address.scheme, address.host, address.port)


def test_a_bare_address_goes_over_udp() -> None:
    assert parse_server("9001").over_udp() == ServerAddress("udp", "127.0.0.1", 9001, bare=True)
    assert parse_server("udp:9001").over_udp().is_datagram


def test_an_address_of_another_scheme_does_not_go_over_udp() -> None:
    with pytest.raises(ValueError, match="tcp:"):
        parse_server("tcp:9001").over_udp()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("9001", "127.0.0.1:9001"),
        ("tcp:[::1]:9001", "[::1]:9001"),
        ("udp:9001", "udp:127.0.0.1:9001"),
        ("unix:/a\x1bb", "unix:/a\\x1bb"),
        ("tcp:udp:9", "tcp:udp:9"),
    ],
)
def test_is_shown_as_a_user_would_write_it(text: str, shown: str) -> None:
    assert str(parse_server(text)) == shown
