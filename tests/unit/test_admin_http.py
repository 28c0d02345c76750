"""The admin server's HTTP has a bound for everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from netsvc.admin.http import LIMITS, MOST_CONNECTIONS, TIMES
from netsvc.http.connection import RESOLUTION
from netsvc.plan.answer import Answer
from tests.builders.admin_asked import Admin
from tests.builders.http import request


def test_a_client_of_http_1_0_is_answered() -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(b"GET /health HTTP/1.0\r\n\r\n")
    assert transport.value().endswith(b"ok\n")
    assert transport.gone


@pytest.mark.parametrize(
    ("head", "code"),
    [
        # RFC 9112, section 3.2.
        (b"GET /health HTTP/1.1\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /health HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: local host\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: user@localhost\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost@evil\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost:x\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: [\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost:\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: [::1]:9100\r\n", 200),
        # Section 3.2.2: the host of the target is the one that counts.
        (b"GET http://localhost:9100/health HTTP/1.1\r\nHost: evil.example\r\n", 200),
        (b"GET HTTP://localhost/health HTTP/1.0\r\n", 200),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n", 403),
        (b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n", 200),
        (b"GET http://localhost?x HTTP/1.1\r\nHost: localhost\r\n", 200),
        (b"GET http://localhost/api/connections?connections=0 HTTP/1.1\r\nHost: localhost\r\n", 200),
        (b"GET http://localhost/api/connections?connections=x HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET http://user@localhost/health HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET http:/health HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET ftp://localhost/health HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET health HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n", 400),
        # As haproxy checks by default.
        (b"OPTIONS / HTTP/1.0\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n", 200),
        (b"OPTIONS /nothing HTTP/1.0\r\n", 404),
        (b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n", 403),
        (b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n", 400),
    ],
)
def test_a_target_and_a_host_are_read_as_http_has_them(head: bytes, code: int) -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(head + b"\r\n")
    assert int(transport.value().split()[1]) == code
    transport.end()


def test_an_answer_that_does_not_come_in_time_ends_the_connection() -> None:
    admin = Admin()
    admin.operations.held = []
    transport = admin.send("/api/status")
    admin.clock.advance(TIMES.answer + RESOLUTION)
    assert transport.aborted
    # It comes all the same, when nobody waits any more.
    admin.operations.held[0].callback([])


def test_a_body_that_is_too_long_is_refused() -> None:
    admin = Admin()
    assert admin.post("/api/reload", b"{" + b" " * (LIMITS.body - 2) + b"}").code == 200
    reply = admin.post("/api/reload", b"{" + b" " * (LIMITS.body - 1) + b"}")
    assert reply.code == 413
    assert str(LIMITS.body) in reply.json["error"]
    assert admin.operations.asked == ["reload"]


def test_beyond_the_most_connections_the_one_that_waits_longest_gives_way() -> None:
    admin = Admin()
    first, second, *_ = [admin.connect() for _ in range(MOST_CONNECTIONS)]
    first.protocol.dataReceived(request("/health"))
    admin.connect()
    assert second.aborted
    assert not first.aborted
    assert len(admin.factory.connections) == MOST_CONNECTIONS
    admin.close()
    assert not admin.factory.connections


def test_where_all_are_being_answered_there_is_no_room() -> None:
    admin = Admin()
    admin.operations.held = []
    for _ in range(MOST_CONNECTIONS):
        admin.send("/api/status")
    assert admin.factory.buildProtocol(None) is None
    admin.operations.held[0].callback([])
    assert admin.factory.buildProtocol(None) is not None
    admin.close()


def test_requests_that_come_before_the_answer_wait_and_then_keep_their_order() -> None:
    admin = Admin()
    admin.operations.answer = Deferred()
    transport = admin.connect()
    transport.protocol.dataReceived(request("/api/reload", "POST", b"{}", Content_Type="application/json"))
    transport.protocol.dataReceived(request("/health"))
    assert not transport.value()
    admin.operations.answer.callback(Answer(0, ["done"]))
    assert transport.value().index(b"done") < transport.value().index(b"ok\n")
    transport.end()


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_every_answer_forbids_what_it_does_not_need(method: str) -> None:
    reply = Admin().ask("/", method)
    assert reply.headers["cache-control"] == "no-store"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "server" not in reply.headers
    assert bool(reply.body) is (method == "GET")


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_answered_or_end_the_connection(data: bytes, begun: bool) -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(b"GET /health HTTP/1.1\r\n" * begun + data + b"\r\n\r\n")
    admin.clock.pump([RESOLUTION] * int(TIMES.idle + TIMES.request))
    assert transport.gone
    assert not admin.factory.connections
    assert not admin.clock.getDelayedCalls()
