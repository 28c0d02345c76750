"""What is no chat client, by its first bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.foreign import Opening, foreign_protocol

FOREIGN = [
    ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("HTTP", b"POST /chat HTTP/1.1\r\nContent-Length: 40\r\n\r\n/nick root\n/topic owned\nhello\n"),
    ("HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("HTTP", b"CONNECT example.com:443 HTTP/1.1\r\n"),
    ("HTTP", b"get http://example.com/ HTTP/1.0\n"),
    ("HTTP", b"FOO-bar /a b c HTTP/1.1\r\n"),
    ("HTTP", b"\r\n\r\nHEAD /x HTTP/1.1\r\n"),
    ("HTTP", b"GET /\r\n"),
    ("HTTP", b"GET /" + b"x" * 5000),
    ("RTSP", b"OPTIONS * RTSP/1.0\r\n"),
    ("SIP", b"OPTIONS sip:nm SIP/2.0\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n"),
    ("TLS", b"\x80\x2e\x01\x03\x01"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ("SMB", b"\0\0\0\x85\xffSMB\x72"),
    ("SMB", b"\0\0\0\xf8\xfeSMB\x40"),
    ("RDP", b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0"),
    ("PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
    ("PROXY", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"),
    ("IRC", b"CAP LS 302\r\n"),
    ("IRC", b"NICK ann\r\nUSER ann 0 * :Ann\r\n"),
    ("SMTP", b"EHLO mail\r\n"),
    ("PostgreSQL", b"\0\0\0\x08\x04\xd2\x16\x2f"),
    ("Redis", b"*1\r\n$4\r\nPING\r\n"),
    ("MQTT", b"\x10\x0c\0\x04MQTT\x04"),
    ("SOCKS", b"\x05\x01\0"),
    ("VNC", b"RFB 003.008\n"),
]

TALK = [
    b"hello\n",
    b"GET out of here\n",
    b"GET\n",
    b"I love HTTP/2\n",
    b"get / maybe\n",
    b"use my HTTP/1.1\n",
    b"POST it to /tmp please\n",
    b"/nick GET\n",
    b"SSH is down\n",
    b"PROXY settings\n",
    b"NICK is here\n",
    b"NICK is here\nhello\n",
    b"CAPS LOCK\n",
    b"USER error\n",
    "ééé\n".encode("latin-1"),
    "学习\n".encode("gbk"),
    "\ufeffhi\n".encode("utf-16-le"),
    b"\xff\xfb\x1f\xff\xfb\x20hi\n",
    b"\0\0\0",
    b"",
    b"\x03",
]


def opened(pieces: list[bytes], limit: int = 4096) -> str | None:
    """The protocol that an opening tells, and no more after it has decided."""
    opening = Opening(limit)
    for piece in pieces:
        if opening.open and (protocol := opening.feed(piece)):
            return protocol
        assert len(opening._data) <= 2 * limit
    return None


@pytest.mark.parametrize(("protocol", "data"), FOREIGN)
def test_a_client_of_another_protocol_is_recognized_however_its_bytes_come(protocol: str, data: bytes) -> None:
    assert opened([data]) == protocol
    # Those that are told by two lines come in one piece.
    if protocol not in ("IRC", "Redis") and b"QUIT" not in data:
        assert opened([data[at : at + 1] for at in range(len(data))]) == protocol


@pytest.mark.parametrize("data", TALK)
def test_what_people_say_is_not(data: bytes) -> None:
    assert opened([data]) is None
    assert opened([data[at : at + 1] for at in range(len(data))]) is None


@pytest.mark.parametrize("data", [b"GET /", b"POST /chat HTT", b"HEAD http://x HTTP/1.1"])
def test_a_request_that_stops_in_its_first_line_is_one_too(data: bytes) -> None:
    opening = Opening(4096)
    assert opening.feed(data) is None and opening.end() == "HTTP"


def test_after_the_first_line_nothing_is_looked_at() -> None:
    assert opened([b"hello\n", b"GET / HTTP/1.1\n"]) is None


@settings(deadline=None)
@given(data=st.binary(max_size=80), cuts=st.lists(st.integers(0, 80)))
def test_any_bytes_in_any_pieces_are_taken(data: bytes, cuts: list[int]) -> None:
    pieces = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
    assert opened([data]) is None or opened(pieces, 16) is None or foreign_protocol(data.lstrip(b"\r\n"), final=True)
