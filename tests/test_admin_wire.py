"""The admin server's HTTP has a bound for everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from netsvc.admin.wire import (
    ANSWER_TIME,
    IDLE_TIME,
    LONGEST_BODY,
    LONGEST_HEAD,
    MOST_CONNECTIONS,
    MOST_HEADERS,
    REQUEST_TIME,
)
from netsvc.host.control import Answer
from tests.admin_asked import Admin, request


def test_several_requests_come_on_one_connection() -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(request("/health") * 3)
    assert transport.value().count(b"HTTP/1.1 200 OK") == 3
    assert not transport.gone
    transport.end()


def test_a_client_of_http_1_0_is_answered() -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(b"GET /health HTTP/1.0\r\n\r\n")
    assert transport.value().endswith(b"ok\n")
    assert transport.gone


def test_a_request_that_does_not_come_whole_in_time_ends_the_connection() -> None:
    admin = Admin()
    transport = admin.connect()
    for _ in range(int(REQUEST_TIME) - 1):
        admin.clock.advance(1)
        transport.protocol.dataReceived(b"G")
    assert not transport.aborted
    admin.clock.advance(1)
    assert transport.aborted


def test_a_connection_that_asks_nothing_more_is_ended() -> None:
    admin = Admin()
    transport = admin.send("/health")
    admin.clock.advance(IDLE_TIME - 0.1)
    assert not transport.aborted
    admin.clock.advance(0.1)
    assert transport.aborted


def test_an_answer_that_does_not_come_in_time_ends_the_connection() -> None:
    admin = Admin()
    admin.operations.held = []
    transport = admin.send("/api/status")
    admin.clock.advance(ANSWER_TIME)
    assert transport.aborted
    # It comes all the same, when nobody waits any more.
    admin.operations.held[0].callback([])


def test_a_head_that_is_too_long_ends_the_connection() -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(b"GET /" + b"x" * (LONGEST_HEAD + 1))
    assert transport.gone
    transport = admin.send("/health", headers={f"X_{number}": "y" * 1000 for number in range(LONGEST_HEAD // 1000 + 1)})
    assert transport.gone
    assert transport.value().startswith(b"HTTP/1.1 400 ")


def test_a_head_at_the_limit_is_read() -> None:
    admin = Admin()
    assert admin.ask("/health", X="y" * (LONGEST_HEAD - 100)).code == 200
    assert admin.ask("/health", headers={f"X_{number}": "y" for number in range(MOST_HEADERS - 1)}).code == 200
    assert admin.send("/health", headers={f"X_{number}": "y" for number in range(MOST_HEADERS)}).gone


def test_a_body_that_is_too_long_is_not_kept() -> None:
    admin = Admin()
    assert admin.post("/api/reload", b"{" + b" " * (LONGEST_BODY - 2) + b"}").code == 200
    reply = admin.post("/api/reload", b"{" + b" " * (LONGEST_BODY - 1) + b"}")
    assert reply.code == 413
    assert str(LONGEST_BODY) in reply.json["error"]
    transport = admin.connect()
    transport.protocol.dataReceived(request("/api/reload", "POST", Content_Length=str(1 << 40)))
    for _ in range(100):
        transport.protocol.dataReceived(b"x" * 10000)
    [kept] = transport.protocol.requests
    assert kept.content is not None and len(kept.content.getvalue()) == LONGEST_BODY
    transport.end()
    assert admin.operations.asked == ["reload"]


def test_beyond_the_most_connections_the_one_that_waits_longest_gives_way() -> None:
    admin = Admin()
    first, second, *_ = [admin.connect() for _ in range(MOST_CONNECTIONS)]
    first.protocol.dataReceived(request("/health"))
    admin.connect()
    assert second.aborted
    assert not first.aborted
    assert len(admin.factory.channels) == MOST_CONNECTIONS
    admin.close()
    assert not admin.factory.channels


def test_where_all_are_being_answered_there_is_no_room() -> None:
    admin = Admin()
    admin.operations.held = []
    for _ in range(MOST_CONNECTIONS):
        admin.send("/api/status")
    assert admin.factory.buildProtocol(None) is None
    admin.operations.held[0].callback([])
    assert admin.factory.buildProtocol(None) is not None
    admin.close()


def test_one_that_gave_way_is_not_counted_when_its_request_ends() -> None:
    admin = Admin()
    transport = admin.send("/health")
    admin.factory.channels.clear()
    transport.protocol.dataReceived(request("/health"))
    assert not admin.factory.channels
    transport.end()


def test_requests_that_come_before_the_answer_wait_and_then_keep_their_order() -> None:
    admin = Admin()
    admin.operations.answer = Deferred()
    transport = admin.connect()
    transport.protocol.dataReceived(request("/api/reload", "POST", b"{}", Content_Type="application/json"))
    transport.protocol.dataReceived(request("/health"))
    assert not transport.value()
    transport.protocol.dataReceived(request("/health") * 1000)
    assert transport.producerState == "paused"
    admin.operations.answer.callback(Answer(0, ["done"]))
    assert transport.value().index(b"done") < transport.value().index(b"ok\n")
    transport.end()


def test_who_does_not_take_the_answers_gets_no_more_of_them() -> None:
    admin = Admin()
    transport = admin.connect()
    channel = transport.protocol

    # As a transport whose buffer is full with the first answer.
    def write(data: bytes) -> None:
        transport.io.write(data)
        channel.pauseProducing()

    transport.write = write  # type: ignore[method-assign]
    channel.dataReceived(request("/health") * 20)
    assert transport.value().count(b"HTTP/1.1 200 OK") == 1
    assert transport.producerState == "paused"
    del transport.write
    channel.resumeProducing()
    assert transport.value().count(b"HTTP/1.1 200 OK") == 20
    assert transport.producerState == "producing"
    channel.dataReceived(request("/health"))
    assert transport.value().count(b"HTTP/1.1 200 OK") == 21
    transport.end()


def test_nothing_is_read_of_a_watcher_that_does_not_read() -> None:
    admin = Admin()
    transport = admin.send("/api/stream")
    channel = transport.protocol
    channel.pauseProducing()
    assert transport.producerState == "paused"
    channel.resumeProducing()
    # It must be seen when it leaves.
    assert transport.producerState == "producing"
    channel.dataReceived(b"x" * 100_000)
    assert transport.producerState == "paused"
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
    if not transport.gone:
        admin.clock.advance(IDLE_TIME)
    assert transport.gone
    assert not admin.factory.channels
    assert not admin.clock.getDelayedCalls()
