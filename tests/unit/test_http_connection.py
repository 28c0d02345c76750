"""Connections of HTTP/1.1: one answer after another, within bounds of time and memory."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.http import connection
from netsvc.http.connection import (
    AT_ONCE,
    MOST_WAITING,
    RESOLUTION,
    Exchange,
    Times,
    header_lines,
)
from netsvc.http.request import RequestLimits
from tests.builders.http import Server, Transport, read_replies, request
from tests.conftest import LoggedErrors

TIMES = Times(request=10, answer=30, idle=20, linger=2)


def echo(exchange: Exchange) -> None:
    """Answer with the path and the body."""
    exchange.answer(200, exchange.request.path + b" " + exchange.request.body, b"X: y\r\n")


def test_requests_are_answered_in_their_order_on_one_connection() -> None:
    server = Server(echo, limits=RequestLimits(body=10))
    transport = server.connect(request("/1") + request("/2", "POST", b"body") + request("/3"))
    replies = read_replies(transport.value())
    assert [(each.code, each.body) for each in replies] == [(200, b"/1 "), (200, b"/2 body"), (200, b"/3 ")]
    assert replies[0].headers == {"date": "Thu, 01 Jan 1970 00:00:00 GMT", "content-length": "3", "x": "y"}
    assert not transport.ended


def test_an_answer_that_takes_time_delays_the_requests_behind_it() -> None:
    exchanges: list[Exchange] = []
    server = Server(exchanges.append)
    transport = server.connect(request("/1") + request("/2") + request("/3"))
    for number in (1, 2, 3):
        [exchange] = exchanges
        exchanges.clear()
        assert exchange.request.path == b"/%d" % number
        exchange.answer(200, b"%d" % number)
        assert [each.body for each in read_replies(transport.take())] == [b"%d" % number]
    assert exchanges == []


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", "close"),
        (b"GET / HTTP/1.0\r\n", "close"),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", "keep-alive"),
    ],
)
def test_the_connection_is_kept_if_the_client_says_so(head: bytes, expected: str | None) -> None:
    transport = Server(echo).connect(head + b"\r\n")
    [reply] = read_replies(transport.value())
    assert reply.headers.get("connection") == expected
    assert transport.gone == (expected == "close")


def test_an_answer_of_any_length_is_chunked_and_to_http_1_0_ends_with_the_connection() -> None:
    def parts(exchange: Exchange) -> None:
        exchange.start(200)
        exchange.write(b"some")
        exchange.write(b"")
        exchange.write(b"thing")
        exchange.finish()

    transport = Server(parts).connect(request("/"))
    assert transport.value().endswith(b"\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n5\r\nthing\r\n0\r\n\r\n")
    assert not transport.ended
    transport = Server(parts).connect(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    [reply] = read_replies(transport.value())
    assert (reply.body, reply.headers.get("connection")) == (b"something", "close")
    assert transport.gone
    transport = Server(parts).connect(request("/", "HEAD") * 2)
    assert transport.value().count(b"\r\n\r\n") == 2
    assert transport.value().endswith(b"\r\n\r\n")


def test_the_answer_to_head_and_those_without_content_have_none() -> None:
    transport = Server(echo).connect(request("/", "HEAD"))
    [head, rest] = transport.value().split(b"\r\n\r\n")
    assert b"Content-Length: 2" in head
    assert rest == b""
    for status in (204, 304):
        transport = Server(partial(Exchange.answer, status=status)).connect(request("/"))
        assert b"Content-Length" not in transport.value()


def test_a_request_that_is_none_is_answered_after_those_before_it_and_ends_the_connection() -> None:
    transport = Server(echo).connect(request("/1") + b"nonsense\r\n\r\n" + request("/2"))
    assert [each.code for each in read_replies(transport.value())] == [200, 501]
    assert transport.ended


def test_an_error_has_no_content_if_the_request_is_head() -> None:
    for pieces in ([b"HEAD / HTTP/1.1\r\n\r\n"], [b"HEAD / HT", b"TP/1.1\r\n", b"\r\n"]):
        transport = Server(echo).connect()
        for piece in pieces:
            transport.protocol.dataReceived(piece)
        head, end, content = transport.value().partition(b"\r\n\r\n")
        assert (head.split(b" ")[1], end, content) == (b"400", b"\r\n\r\n", b"")
        assert transport.ended


def test_a_client_that_closes_in_the_middle_of_a_request_is_told() -> None:
    transport = Server(echo).connect(request("/1") + request("/2")[:-1])
    transport.protocol.readConnectionLost()
    assert [each.code for each in read_replies(transport.value())] == [200, 400]
    assert transport.gone


def test_what_follows_the_last_answer_is_dropped_until_the_client_closes_or_time_is_up() -> None:
    # An unread rest would reset the connection, and cut the answer.
    server = Server(echo, times=TIMES)
    transport = Transport()
    transport.stays = True
    transport.protocol = server.factory.buildProtocol(None)  # type: ignore[assignment]
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(request("/", Connection="close"))
    assert (transport.ended, transport.gone) == (True, False)
    transport.protocol.dataReceived(b"x" * 100_000)
    assert len(read_replies(transport.value())) == 1
    server.clock.pump([RESOLUTION] * 3)
    assert (transport.gone, transport.aborted) == (True, False)
    assert server.clock.getDelayedCalls() == []


class Unread(Transport):
    """A connection whose client neither reads nor closes."""

    stays = True

    def loseConnection(self) -> None:
        """Wait for the client."""
        self.disconnecting = True


@pytest.mark.parametrize("wait", [TIMES.idle, 0])
def test_a_closed_connection_whose_client_does_not_read_is_reset_after_the_time_of_an_answer(wait: float) -> None:
    server = Server(echo, times=TIMES)
    transport = Unread()
    transport.protocol = server.factory.buildProtocol(None)  # type: ignore[assignment]
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(request("/", Connection="keep-alive" if wait else "close"))
    transport.protocol.pauseProducing()
    server.clock.pump([RESOLUTION] * int(wait + TIMES.linger + TIMES.answer - 1))
    assert (transport.disconnecting, transport.gone) == (True, False)
    server.clock.pump([RESOLUTION] * 3)
    assert transport.aborted
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("line", "left", "ends"),
    [
        ("Connection: close\r\n", 0, True),
        ("Connection: close\r\n", None, False),
        # It could be cut off by a reset, if the client sends something.
        ("Connection: close\r\n", 1, False),
        ("", 0, False),
    ],
)
def test_a_client_that_has_said_that_it_ends_is_not_awaited_once_it_has_everything(
    monkeypatch: pytest.MonkeyPatch, line: str, left: int | None, ends: bool
) -> None:
    monkeypatch.setattr(connection, "unacknowledged", lambda transport: left)
    server = Server(echo, times=TIMES)
    transport = server.connect()
    transport.stays = True
    transport.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n" + line.encode() + b"\r\n")
    if not line:
        server.factory.drain()
    assert transport.ended
    transport.protocol.writeConnectionLost()
    assert transport.gone == ends
    transport.end()


def test_a_client_that_half_closes_gets_all_answers() -> None:
    exchanges: list[Exchange] = []
    server = Server(exchanges.append)
    transport = server.connect(request("/1") + request("/2"))
    transport.protocol.readConnectionLost()
    exchanges[0].answer(200)
    exchanges[1].answer(200)
    assert len(read_replies(transport.value())) == 2
    assert transport.gone
    transport = server.connect()
    transport.protocol.readConnectionLost()
    assert transport.gone


def test_a_request_that_does_not_come_whole_in_time_is_answered_408() -> None:
    server = Server(echo, times=TIMES)
    transport = server.connect()
    head = request("/")[:-2]
    # The time is for all of it, however often a byte comes.
    for number in range(10):
        transport.protocol.dataReceived(head[number : number + 1])
        assert not transport.ended
        server.clock.advance(RESOLUTION)
    server.clock.advance(RESOLUTION)
    assert [each.code for each in read_replies(transport.value())] == [408]
    assert transport.ended


def test_idle_connections_are_closed_and_slow_answers_are_reset() -> None:
    exchanges: list[Exchange] = []
    server = Server(
        lambda each: each.answer(200) if each.request.path == b"/fast" else exchanges.append(each), times=TIMES
    )
    never, idle, slow = server.connect(), server.connect(request("/fast")), server.connect(request("/slow"))
    server.clock.pump([RESOLUTION] * 11)
    assert (never.gone, idle.gone, slow.gone) == (True, False, False)
    server.clock.pump([RESOLUTION] * 10)
    assert (idle.gone, idle.aborted, slow.gone) == (True, False, False)
    server.clock.pump([RESOLUTION] * 10)
    assert slow.aborted
    [exchange] = exchanges
    assert not exchange.waiting
    # It comes too late, and goes nowhere.
    exchange.answer(200)
    exchange.start(200)
    exchange.write(b"x")
    exchange.finish()
    assert slow.value() == b""
    assert server.clock.getDelayedCalls() == []


def test_a_client_that_does_not_read_gets_no_more_answers_until_it_does() -> None:
    server = Server(echo)
    transport = server.connect(request("/1"))
    transport.clear()
    transport.protocol.pauseProducing()
    transport.protocol.dataReceived(request("/2"))
    assert transport.value() == b""
    transport.protocol.resumeProducing()
    assert len(read_replies(transport.value())) == 1


def test_a_client_that_sends_more_than_is_answered_is_not_read() -> None:
    exchanges: list[Exchange] = []
    server = Server(exchanges.append)
    transport = server.connect(request("/1"))
    while transport.producerState == "producing":
        transport.protocol.dataReceived(request("/") * 100)
    waiting = len(transport.protocol._unread)
    assert MOST_WAITING < waiting < MOST_WAITING + 100 * len(request("/"))
    while exchanges:
        exchanges.pop().answer(200)
        server.clock.advance(0)
    assert transport.producerState == "producing"
    assert len(read_replies(transport.value())) > MOST_WAITING // len(request("/"))


def test_many_requests_at_once_leave_others_their_turn() -> None:
    server = Server(echo)
    transport = server.connect(request("/") * 3 * AT_ONCE)
    assert len(read_replies(transport.take())) == AT_ONCE
    server.clock.advance(0)
    assert len(read_replies(transport.take())) == 2 * AT_ONCE


def test_a_producer_of_an_answer_pauses_with_the_client() -> None:
    class Producer:
        def __init__(self) -> None:
            self.told: list[str] = []

        def pauseProducing(self) -> None:
            self.told.append("pause")

        def resumeProducing(self) -> None:
            self.told.append("resume")

    exchanges: list[Exchange] = []
    server = Server(exchanges.append)
    transport = server.connect(request("/"))
    producer = exchanges[0].producer = Producer()
    transport.protocol.pauseProducing()
    transport.protocol.resumeProducing()
    assert producer.told == ["pause", "resume"]


def test_who_makes_an_answer_learns_that_the_client_has_gone() -> None:
    exchanges: list[Exchange] = []
    ended: list[bool] = []
    server = Server(exchanges.append)
    transport = server.connect(request("/"))
    exchanges[0].when_ended(lambda: ended.append(exchanges[0].waiting))
    transport.end()
    assert ended == [False]


def test_a_failure_is_answered_500_or_cuts_the_answer_off(logged_errors: LoggedErrors) -> None:
    def fail(exchange: Exchange) -> None:
        if exchange.request.path == b"/late":
            exchange.start(200, length=10)
            exchange.write(b"part")
        raise ZeroDivisionError

    server = Server(fail)
    transport = server.connect(request("/early") + request("/early"))
    assert [each.code for each in read_replies(transport.value())] == [500, 500]
    assert server.connect(request("/late")).aborted
    assert len(logged_errors.flush(ZeroDivisionError)) == 3


def test_a_client_that_waits_with_its_body_is_told_to_send_it() -> None:
    server = Server(echo, limits=RequestLimits(body=10))
    transport = server.connect(request("/", "POST", headers={"Expect": "100-continue", "Content-Length": "4"}))
    assert transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    transport.protocol.dataReceived(b"body")
    assert [each.body for each in read_replies(transport.value())] == [b"/ body"]


def test_a_drain_closes_idle_connections_and_others_after_their_answer() -> None:
    exchanges: list[Exchange] = []
    server = Server(exchanges.append)
    idle, busy, partly = server.connect(), server.connect(request("/1")), server.connect(request("/2")[:-2])
    server.factory.drain()
    assert (idle.gone, busy.gone, partly.gone) == (True, False, False)
    exchanges[0].answer(200)
    partly.protocol.dataReceived(b"\r\n")
    exchanges[1].answer(200)
    for transport in (busy, partly):
        [reply] = read_replies(transport.value())
        assert reply.headers["connection"] == "close"
        assert transport.gone
    assert server.factory.connections == {}


def test_the_longest_idle_connection_is_closed_for_a_new_one() -> None:
    server = Server(echo, most=2, times=TIMES)
    first = server.connect()
    server.clock.advance(1)
    second = server.connect()
    first.protocol.dataReceived(request("/"))
    third = server.connect()
    assert (first.gone, second.gone, third.gone) == (False, True, False)
    server.factory.close()
    assert first.aborted and third.aborted
    assert server.clock.getDelayedCalls() == []
    busy = Server(lambda _exchange: None, most=1)
    busy.connect(request("/"))
    assert busy.factory.buildProtocol(None) is None


def test_a_client_that_sends_a_part_of_a_request_keeps_nobody_out() -> None:
    server = Server(echo, most=1)
    partly = server.connect(b"GET / HT")
    server.connect(request("/"))
    assert partly.aborted


def test_a_header_cannot_begin_another_one() -> None:
    assert header_lines({"A": "b"}) == b"A: b\r\n"
    for name, value in (("A", "b\r\nC: d"), ("A\n", "b")):
        with pytest.raises(ValueError, match="line end"):
            header_lines({name: value})


@given(st.lists(st.sampled_from([request("/"), request("/", "HEAD"), b"nonsense\r\n\r\n"]) | st.binary(max_size=30)))
def test_any_bytes_get_answers_and_leave_nothing(pieces: list[bytes]) -> None:
    server = Server(echo)
    transport = server.connect()
    for piece in pieces:
        if not transport.ended:
            transport.protocol.dataReceived(piece)
            server.clock.advance(0)
    transport.protocol.readConnectionLost()
    server.clock.pump([RESOLUTION] * 40)
    assert transport.gone
    assert server.factory.connections == {}
    assert server.clock.getDelayedCalls() == []
