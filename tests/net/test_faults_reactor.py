"""What one connection raises on the fast reactor ends that connection, is told of once, and keeps nobody waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.logger import capturedLogs

from tests.builders.turned import Net, Wire, echo, read
from tests.conftest import LoggedErrors


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


def fail(*_: object) -> None:
    raise ZeroDivisionError


def lose_badly(wire: Any) -> None:
    """Have a connection raise at its end as well."""
    ended = wire.connectionLost

    def lost(reason: Any) -> None:
        ended(reason)
        raise LookupError

    wire.connectionLost = lost


@pytest.mark.parametrize("unix", [False, True])
def test_a_fault_ends_its_connection_and_is_logged_once(net: Net, logged_errors: LoggedErrors, unix: bool) -> None:
    wire, peer = net.connect(fail, unix=unix)
    _, other_peer = net.connect(echo, unix=unix)
    peer.sendall(b"x")
    other_peer.sendall(b"y")
    with capturedLogs() as events:
        net.until(lambda: wire.reason)
    assert wire.reason is ZeroDivisionError
    assert read(other_peer, 1) == b"y"
    [failure] = logged_errors.flush()
    assert failure.type is ZeroDivisionError
    [line] = [event["why"] for event in events if event.get("isError")]
    assert line.startswith("Wire,")
    assert line.endswith(" failed")


def test_who_is_told_of_a_fault_may_log_it_instead(net: Net) -> None:
    wire, peer = net.connect(fail)
    ended = wire.connectionLost

    def lost(reason: Any) -> None:
        assert net.reactor.fault is reason.value
        net.reactor.fault = None
        ended(reason)

    wire.connectionLost = lost
    peer.sendall(b"x")
    net.until(lambda: wire.reason)


def test_a_fault_at_the_end_of_one_keeps_no_other_from_being_flushed(net: Net, logged_errors: LoggedErrors) -> None:
    wires = [net.connect() for _ in range(5)]
    broken, _ = wires[1]
    lose_badly(broken)
    for wire, _ in wires:
        wire.transport.write(b"x")
    broken.transport.doWrite = ConnectionLost
    net.turn()
    assert broken.reason is ConnectionLost
    for wire, peer in wires:
        if wire is not broken:
            assert read(peer, 1) == b"x"
    assert [failure.type for failure in logged_errors.flush()] == [LookupError]


def test_a_fault_in_writing_keeps_no_other_from_being_flushed(net: Net, logged_errors: LoggedErrors) -> None:
    wires = [net.connect() for _ in range(3)]
    broken, _ = wires[0]
    for wire, _ in wires:
        wire.transport.write(b"x")
    broken.transport.doWrite = fail
    net.turn()
    assert broken.reason is ZeroDivisionError
    assert [read(peer, 1) for _, peer in wires[1:]] == [b"x"] * 2
    assert [failure.type for failure in logged_errors.flush()] == [ZeroDivisionError]


def test_a_fault_at_the_end_of_one_keeps_no_other_from_being_read(net: Net, logged_errors: LoggedErrors) -> None:
    wires = [net.connect(echo) for _ in range(5)]
    for wire, peer in wires[::2]:
        lose_badly(wire)
        peer.close()
    for _, peer in wires[1::2]:
        peer.sendall(b"x")
    net.turn()
    assert [read(peer, 1) for _, peer in wires[1::2]] == [b"x"] * 2
    net.until(lambda: all(wire.reason for wire, _ in wires[::2]))
    assert [failure.type for failure in logged_errors.flush()] == [LookupError] * 3
    assert isinstance(wires[0][0], Wire)


class Stubborn:
    """A producer that fails to stop."""

    def resumeProducing(self) -> None:
        """Produce nothing."""

    def pauseProducing(self) -> None:
        """Produce nothing."""

    def stopProducing(self) -> None:
        raise LookupError


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_producer_that_fails_to_stop_keeps_no_connection_open(
    net: Net, logged_errors: LoggedErrors, unix: bool, streaming: bool
) -> None:
    wire, peer = net.connect(unix=unix)
    wire.transport.registerProducer(Stubborn(), streaming)
    wire.transport.abortConnection()
    net.until(lambda: wire.reason)
    assert wire.reason is ConnectionAborted
    with suppress(ConnectionResetError):
        assert peer.recv(1) == b""
    assert [failure.type for failure in logged_errors.flush()] == [LookupError]
