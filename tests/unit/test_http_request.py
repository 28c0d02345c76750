"""Requests of HTTP/1.1, read from whatever bytes come."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.http.request import (
    LONGEST_KNOWN,
    MOST_KNOWN,
    KnownHeaders,
    Request,
    RequestError,
    RequestLimits,
    RequestParser,
)

LIMITS = RequestLimits(target=100, head=200, headers=8, body=10)
HOST = b"Host: a\r\n"


class Nothing(KnownHeaders):
    """Remembers no headers."""

    def add(self, section: bytes, request: Request) -> None:
        """Forget them."""


def parse(pieces: list[bytes], limits: RequestLimits = LIMITS, known: KnownHeaders | None = None) -> list[object]:
    """Feed pieces; describe each request, and each error by its status."""
    parser = RequestParser(limits, known=KnownHeaders(limits) if known is None else known)
    found: list[object] = []
    for piece in pieces:
        for each in parser.feed(piece):
            if isinstance(each, RequestError):
                found.append(int(each.status))
            else:
                found.append((each.method, each.path, each.query, each.version, each.body, each.keep_alive))
                assert {name for name, _ in each.headers} == each.names
    return found


def every_way(data: bytes) -> list[object]:
    """Parse bytes whole and one by one, with the same result."""
    whole = parse([data])
    assert parse([data[place : place + 1] for place in range(len(data))]) == whole
    return whole


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST, (b"GET", b"/", b"", 11, b"", True)),
        (b"GET /a%20b?c=%20 HTTP/1.1\r\n" + HOST, (b"GET", b"/a b", b"c=%20", 11, b"", True)),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST, (b"GET", b"/", b"", 11, b"", False)),
        (b"GET / HTTP/1.0\r\n", (b"GET", b"/", b"", 10, b"", False)),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", (b"GET", b"/", b"", 10, b"", True)),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST, (b"OPTIONS", b"*", b"", 11, b"", True)),
        # RFC 9112, section 3.2.2.
        (b"GET http://b/c?d HTTP/1.1\r\n" + HOST, (b"GET", b"/c", b"d", 11, b"", True)),
        (b"GET http://b HTTP/1.1\r\n" + HOST, (b"GET", b"/", b"", 11, b"", True)),
        (b"GET http://b?d HTTP/1.1\r\n" + HOST, (b"GET", b"/", b"d", 11, b"", True)),
        # curl sends what the user has written.
        ("GET /学 HTTP/1.1\r\nHost: a\r\n".encode(), (b"GET", "/学".encode(), b"", 11, b"", True)),
        # A server may ignore Upgrade (RFC 9110, section 7.8).
        (
            b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n" + HOST,
            (b"GET", b"/", b"", 11, b"", True),
        ),
    ],
)
def test_a_request_is_read_and_the_next_one_after_it(data: bytes, expected: object) -> None:
    assert every_way(data + b"\r\n") == [expected]
    last = (b"HEAD", b"/last", b"", 11, b"", True)
    follows = b"HEAD /last HTTP/1.1\r\nHost: a\r\n\r\n"
    # A client that says that it closes sends nothing more.
    assert every_way(data + b"\r\n" + follows)[:2] in ([expected, last], [expected, 400])


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 3\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3;x=y\r\nabc\r\n0\r\nTrailer: x\r\nHost: b\r\n\r\n"),
    ],
)
def test_a_body_is_read_and_trailers_are_dropped(head: bytes, body: bytes) -> None:
    data = b"POST / HTTP/1.1\r\n" + HOST + head + b"\r\n" + body
    assert every_way(data * 2) == [(b"POST", b"/", b"", 11, b"abc", True)] * 2
    # The line behind it is checked as any other, also if both come together.
    for wrong in (b"GET  / HTTP/1.1\r\n", b"GET /a#b HTTP/1.1\r\n", b"GET /\r\n"):
        assert every_way(data + wrong + HOST + b"\r\n") == [(b"POST", b"/", b"", 11, b"abc", True), 400]
    [request] = RequestParser(LIMITS).feed(data)
    assert isinstance(request, Request)
    assert (request.header(b"host"), request.values(b"host")) == (b"a", [b"a"])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        # Two servers could see two different requests in each of these (RFC 9112, section 11.2).
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        # What follows the head is a body, not the next request.
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: b\r\nContent-Length: 9\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: b\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"CONNECT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", 400),
        # RFC 9112, section 6.1.
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        # RFC 9112, section 3.2.
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        (b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
        (b"XYZZY / HTTP/1.1\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        # What httptools takes for HTTP/1.1 (RFC 9112, section 3).
        (b"GET / RTSP/1.0\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET /\r\nHost: a\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\r\nGET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        # Host (RFC 3986, section 3.2.2).
        *((b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host, 400) for host in (b"<a>", b"%zz", b"a%2", b"\xe5", b'"a"')),
        # The limits.
        (b"GET /" + b"x" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 8 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n", 413),
    ],
)
def test_what_is_no_request_or_over_a_limit_is_an_error_and_the_last(data: bytes, status: int) -> None:
    assert every_way(data) == [status]
    assert every_way(data + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == [status]


def test_what_is_at_the_limits_is_read() -> None:
    target = b"/" + b"x" * 99
    head = b"Host: a\r\nX: " + b"x" * (200 - len(b"HostaX")) + b"\r\n"
    data = b"POST " + target + b" HTTP/1.1\r\n" + head + b"Content-Length: 10\r\n\r\n0123456789"
    longer = RequestLimits(target=100, head=200 + len(b"Content-Length10"), headers=3, body=10)
    assert parse([data], longer) == [(b"POST", target, b"", 11, b"0123456789", True)]


@pytest.mark.parametrize(("length", "body"), [(b"0", b""), (b"0" * 5000, b""), (b"0" * 5000 + b"3", b"abc")])
def test_a_length_may_have_any_number_of_zeros_in_front(length: bytes, body: bytes) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n" + body
    assert parse([data], RequestLimits(head=8192, body=10)) == [(b"POST", b"/", b"", 11, body, True)]


def test_a_head_that_never_ends_is_refused() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    fed = 0
    found: list[Request | RequestError] = []
    while not found and fed < 10_000:
        found = parser.feed(b"x" * 10)
        fed += 10
    [error] = found
    assert isinstance(error, RequestError)
    assert (error.status, fed < 1000) == (431, True)
    assert parser.feed(b"x") == []


def test_a_client_that_waits_with_its_body_is_told_to_send_it() -> None:
    told: list[bool] = []
    parser = RequestParser(LIMITS, lambda: told.append(True))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert parser.feed(head % 10) == []
    assert told == [True]
    assert len(parser.feed(b"0123456789")) == 1
    # Not if there is none, or it is not wanted.
    assert len(parser.feed(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")) == 1
    [error] = parser.feed(head % 11)
    assert isinstance(error, RequestError) and error.status == 413
    assert told == [True]


FIELDS = st.sampled_from(
    [
        *(HOST, b"Host: \r\n", b"Accept: */*\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n"),
        *(b"Content-Length: 0\r\n", b"Content-Length: 3\r\n", b"Expect: 100-continue\r\n", b"Range: bytes=0-1\r\n"),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"Upgrade: x\r\nConnection: upgrade\r\n",
            b"A\r\n",
            b"B: \xff\r\n",
            b" c\r\n",
        ),
    ]
)
LINES = st.sampled_from(
    [b"GET /%b HTTP/1.1\r\n", b"HEAD /%b HTTP/1.1\r\n", b"GET /%b HTTP/1.0\r\n", b"PUT /%b HTTP/1.1\r\n"]
)
TARGETS = st.text("aZ0._~!$&'()*+,;=:@%/?-#[]|\"<>^`{}\\ \x7f\x00", max_size=8) | st.just("a" * 100)


@given(LINES, TARGETS, st.lists(FIELDS, max_size=5), st.sampled_from([b"", b"\r\n", b"GET / HTTP/1.1\r\n", b"abc"]))
def test_headers_that_are_known_are_read_as_those_that_are_not(
    line: bytes, target: str, fields: list[bytes], rest: bytes
) -> None:
    section = HOST + b"".join(fields) + b"\r\n"
    known = KnownHeaders(LIMITS)
    RequestParser(LIMITS, known=known).feed(b"GET /first HTTP/1.1\r\n" + section)
    data = line.replace(b"%b", target.encode()) + section
    again = [data, data, rest]
    assert parse(again, known=known) == parse(again, known=Nothing(LIMITS))


def test_known_headers_are_limited_in_number_and_size() -> None:
    known = KnownHeaders()
    for number in range(MOST_KNOWN + 1):
        parse([b"GET / HTTP/1.1\r\nHost: a%d\r\n\r\n" % number], known=known)
    assert 1 <= len(known) <= MOST_KNOWN
    known = KnownHeaders()
    parse([b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * LONGEST_KNOWN)], RequestLimits(), known)
    assert len(known) == 0


PARTS = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", HOST, b"Content-Length: 3\r\n", b"\r\n", b"\n", b"\xe5\xad"),
        *(b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n"),
    ]
)


@given(st.lists(PARTS | st.binary(max_size=4), max_size=12))
@example([b"GET / HTTP/1.1\r\n", b"\x80"])
def test_any_bytes_in_any_pieces_are_the_same_requests_or_an_error(parts: list[bytes]) -> None:
    whole = parse([b"".join(parts)])
    assert parse(parts) == whole
    assert all(isinstance(each, tuple) for each in whole[:-1])
