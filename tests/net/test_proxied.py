"""What a protocol can do behind a PROXY header: all that it can without, on both reactors."""

from __future__ import annotations

import gc
import socket
import ssl
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from netsvc.guard import Guard
from netsvc.listen.proxy import MALFORMED
from netsvc.reactor.epoll import NetsvcReactor
from netsvc.service import stream_factory
from netsvc.services.echo import Echo
from netsvc.services.files.classic import Classic
from netsvc.services.files.transport import can_sendfile
from tests.builders.files import make_core, pattern
from tests.builders.pems import Pem, client_context
from tests.builders.proxied import LOOPBACK, PATIENCE, TCP4, HalfCloseable, Inner, Inners, Served, on_reactor
from tests.conftest import LoggedErrors

served = pytest.fixture(params=[EPollReactor, NetsvcReactor])(on_reactor)


def test_a_client_may_half_close_and_still_get_its_answer(served: Served) -> None:
    served.factory.kind = HalfCloseable
    served.listen(LOOPBACK)
    client, inner = served.inner(TCP4 + b"question")
    client.shutdown(socket.SHUT_WR)
    served.until(lambda: "read lost" in inner.events)
    inner.transport.write(b"answer")
    inner.transport.loseConnection()
    assert served.read(client) == b"answer"
    served.until(lambda: "lost" in inner.events)


def test_an_end_and_an_abort_come_to_the_protocol(served: Served) -> None:
    served.listen(LOOPBACK)
    client, inner = served.inner(TCP4)
    client.close()
    served.until(lambda: inner.events == ["made", "lost"])
    client, inner = served.inner(TCP4)
    inner.transport.abortConnection()
    assert served.read(client) == b"<reset>"
    assert inner.events == ["made", "lost"]


class Pausing(Inner):
    def __init__(self) -> None:
        super().__init__()
        self.made = lambda inner: inner.transport.pauseProducing()


def test_who_begins_with_a_pause_gets_nothing_before_it_resumes_and_then_all_in_order(served: Served) -> None:
    served.factory.kind = Pausing
    served.listen(LOOPBACK)
    client, inner = served.inner(TCP4 + b"one ")
    client.send(b"two ")
    served.turn()
    assert inner.received == b""
    inner.transport.resumeProducing()
    # Not from inside the call.
    assert inner.received == b""
    served.until(lambda: inner.received == b"one two ")
    assert not {"stopReading", "startReading"} & vars(inner.transport).keys()
    inner.transport.pauseProducing()
    client.send(b"three")
    served.turn()
    assert inner.received == b"one two "
    inner.transport.resumeProducing()
    served.until(lambda: inner.received == b"one two three")


def test_to_pause_and_resume_again_and_again_delivers_once(served: Served) -> None:
    served.factory.kind = Pausing
    served.listen(LOOPBACK)
    _, inner = served.inner(TCP4 + b"one")
    inner.transport.resumeProducing()
    inner.transport.pauseProducing()
    served.turn()
    assert inner.received == b""
    for _ in range(3):
        inner.transport.resumeProducing()
        inner.transport.resumeProducing()
        inner.transport.pauseProducing()
    inner.transport.resumeProducing()
    served.turn()
    assert inner.received == b"one"


def test_a_pause_that_is_over_when_the_protocol_is_made_delays_nothing(served: Served) -> None:
    def pause_and_resume(inner: Any) -> None:
        inner.transport.pauseProducing()
        inner.transport.resumeProducing()

    def kind() -> Inner:
        inner = Inner()
        inner.made = pause_and_resume
        return inner

    served.factory.kind = kind
    served.listen(LOOPBACK)
    client, inner = served.inner(TCP4 + b"one")
    assert inner.received == b"one"
    client.send(b"two")
    served.until(lambda: inner.received == b"onetwo")


@pytest.mark.parametrize("end", ["loseConnection", "abortConnection"])
@pytest.mark.parametrize("paused", [False, True])
def test_who_ends_the_connection_gets_nothing_any_more_and_nothing_stays(
    served: Served, end: str, paused: bool
) -> None:
    def kind() -> Inner:
        inner = Inner()

        def finish(inner: Any) -> None:
            if paused:
                inner.transport.pauseProducing()
            getattr(inner.transport, end)()

        inner.made = finish
        return inner

    served.factory.kind = kind
    served.listen(LOOPBACK)
    gc.disable()
    try:
        client, inner = served.inner(TCP4 + b"never read")
        served.until(lambda: "lost" in inner.events)
        assert inner.received == b""
        assert served.read(client) in (b"", b"<reset>")
        transport = weakref.ref(inner.transport)
        served.factory.built.clear()
        inner.transport = inner.made = None
        served.turn()
        if end == "loseConnection":
            # An aborted one has a cycle of Twisted's own.
            assert transport() is None
    finally:
        gc.enable()


def test_a_client_that_goes_while_the_protocol_pauses_is_noticed_after_it(served: Served) -> None:
    served.factory.kind = Pausing
    served.listen(LOOPBACK)
    client, inner = served.inner(TCP4 + b"one")
    client.close()
    served.turn()
    inner.transport.resumeProducing()
    served.until(lambda: inner.events == ["made", "lost"])
    assert inner.received == b"one"


def test_a_connection_that_is_lost_before_it_resumes_delivers_nothing(served: Served) -> None:
    served.factory.kind = Pausing
    served.listen(LOOPBACK)
    _, inner = served.inner(TCP4 + b"one")
    inner.transport.resumeProducing()
    inner.transport.abortConnection()
    served.until(lambda: inner.events == ["made", "lost"])
    assert inner.received == b""


@pytest.mark.parametrize("paused", [False, True])
def test_a_protocol_that_fails_loses_its_connection_and_is_logged(
    served: Served, paused: bool, logged_errors: LoggedErrors
) -> None:
    class Failing(Pausing if paused else Inner):  # type: ignore[misc]
        def dataReceived(self, data: bytes) -> None:
            raise LookupError("mine")

    served.factory.kind = Failing
    served.listen(LOOPBACK)
    client, inner = served.inner(TCP4 + b"one")
    if paused:
        inner.transport.resumeProducing()
    assert served.read(client) in (b"", b"<reset>")
    assert inner.events == ["made", "lost"]
    assert [str(error.value) for error in logged_errors.flush(LookupError)] == ["mine"]


def test_a_protocol_may_make_room_for_another_as_it_begins(served: Served) -> None:
    other = Inner()

    def replace(inner: Any) -> None:
        inner.transport.protocol = other
        other.makeConnection(inner.transport)

    def kind() -> Inner:
        inner = Inner()
        inner.made = replace
        return inner

    served.factory.kind = kind
    served.listen(LOOPBACK)
    _, inner = served.inner(TCP4 + b"one")
    assert (inner.received, other.received) == (b"", b"one")


def test_a_file_is_sent_by_the_kernel_as_without_a_proxy(served: Served, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(pattern(4 * 1024 * 1024))
    core, _ = make_core(tmp_path, served.reactor)
    core.start()
    can: list[bool] = []

    class Watched(Classic):
        def connectionMade(self) -> None:
            super().connectionMade()
            can.append(can_sendfile(self.transport))

    served.factory = cast(Any, stream_factory(Watched, core))
    served.factory.noisy = False
    served.listen(LOOPBACK)
    client = served.connect(TCP4 + b"big\n")
    assert served.read(client) == pattern(4 * 1024 * 1024)
    assert can == [True]
    core.stop()


def test_echo_stops_reading_when_its_client_does(served: Served) -> None:
    served.factory = Factory.forProtocol(Echo)
    served.factory.noisy = False
    served.listen(LOOPBACK)
    client = served.connect(TCP4)
    sent, still, block = 0, 0, bytes(65536)
    while still < 100:
        try:
            sent += client.send(block)
            still = 0
        except BlockingIOError:
            still += 1
        served.turn(1)
        assert sent < 64 * 1024 * 1024
    client.shutdown(socket.SHUT_WR)
    assert served.read(client) == bytes(sent)


class Shouting(Inner):
    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.write(data.upper())


@pytest.mark.parametrize("sent", ["together", "apart", "byte by byte"])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("form", ["tls:0:cert={0}:key={1}", "ssl:0:certKey={0}:privateKey={1}"])
def test_the_header_comes_first_and_then_tls(
    served: Served, form: str, guarded: bool, sent: str, tmp_path: Path
) -> None:
    pem = Pem("example.org")
    inners = served.factory = Inners(Shouting)
    if guarded:
        served.factory = Guard(Clock()).wrap(inners, "x tcp")
    listening = served.listen(f"proxy:trust=127.0.0.1:{form.format(*pem.write(tmp_path))}:interface=127.0.0.1")
    if form.startswith("ssl"):
        # It takes the clock of the reactor that the process has.
        port: Any = listening.port
        port.factory.factory._clock = served.reactor
    client = served.connect(b"" if sent == "together" else TCP4)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="example.org")
    behind = TCP4 if sent == "together" else b""

    def attempt(step: Callable[[], Any]) -> Any:
        nonlocal behind
        # One small segment waits until the one before it is acknowledged.
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                done: Any = step()
            except ssl.SSLWantReadError:
                done = None
            behind += outgoing.read()
            while behind:
                size = 1 if sent == "byte by byte" else len(behind)
                client.sendall(behind[:size])
                behind = behind[size:]
                served.turn(1)
            if done is not None:
                return done
            served.turn(1)
            with suppress(BlockingIOError):
                incoming.write(client.recv(65536))
        raise AssertionError("nothing more comes")

    attempt(lambda: tls.do_handshake() or True)  # type: ignore[func-returns-value]
    attempt(lambda: tls.write(b"hello"))
    assert attempt(lambda: tls.read(5)) == b"HELLO"
    [inner] = inners.built
    assert inner.transport.getPeer() == inners.addresses[0] == IPv4Address("TCP", "192.0.2.9", 4000)
    inner.transport.loseConnection()
    # What the server says last is that it is the end.
    assert attempt(lambda: tls.read(1)) == b""
    client.close()
    served.until(lambda: "lost" in inner.events)


def test_tls_without_a_header_gets_no_handshake(served: Served, tmp_path: Path) -> None:
    cert, key = Pem("example.org").write(tmp_path)
    served.listen(f"proxy:trust=127.0.0.1:tls:0:cert={cert}:key={key}:interface=127.0.0.1")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    assert served.read(served.connect(outgoing.read())) in (b"", b"<reset>")
    assert served.refusals == [(MALFORMED, "127.0.0.1")]


@pytest.mark.parametrize("place", ["127.0.0.1:0", "tcp:0:interface=127.0.0.1"])
def test_the_guard_sees_the_real_client_and_the_end(served: Served, place: str) -> None:
    guard = Guard(Clock())
    inners = Inners()
    served.factory = guard.wrap(inners, "x tcp")
    served.listen(f"proxy:trust=127.0.0.1:{place}")
    client = served.connect(TCP4 + b"hello")
    served.until(lambda: inners.built and inners.built[0].received == b"hello")
    [connection] = guard.live
    assert connection.peer == IPv4Address("TCP", "192.0.2.9", 4000)
    client.close()
    served.until(lambda: not guard.live)
    assert inners.built[0].events == ["made", "lost"]


def test_log_lines_of_twisteds_own_name_the_real_client(served: Served) -> None:
    served.listen(LOOPBACK)
    _, inner = served.inner(TCP4)
    assert inner.transport.logPrefix() == "Inner,0,192.0.2.9"
