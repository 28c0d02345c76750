"""A listener behind `proxy:` on a reactor of its own, which turns when the test says so."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from netsvc.guard import GuardedFactory
from netsvc.listen.opening import listen
from netsvc.listen.port import OpenPort
from netsvc.listen.proxy_header import Endpoint
from netsvc.plan.address import parse_address
from tests.builders.turned import shut

#: Seconds that something may take before the test gives up.
PATIENCE = 60.0
#: Turns after which what has not happened will not.
STILL = 30

LOOPBACK = "proxy:trust=127.0.0.0/8:127.0.0.1:0"
TCP4 = b"PROXY TCP4 192.0.2.9 192.0.2.1 4000 443\r\n"


class Inner(Protocol):
    """What a service would have; `made` is what it does at once, and `received` what it does with data."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.events: list[str] = []
        self.made: Callable[[Any], object] = lambda inner: None

    def connectionMade(self) -> None:
        self.events.append("made")
        self.made(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: object = None) -> None:
        self.events.append("lost")


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Inner):
    """One that goes on to write when the client has ended."""

    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


class Inners(Factory):
    """Keeps the addresses that it is asked to build for, and what it built."""

    noisy = False

    def __init__(self, kind: Callable[[], Any] = Inner) -> None:
        self.kind = kind
        self.addresses: list[Any] = []
        self.built: list[Any] = []
        self.started = 0

    def startFactory(self) -> None:
        self.started += 1

    def stopFactory(self) -> None:
        self.started -= 1

    def buildProtocol(self, addr: object) -> Any:
        self.addresses.append(addr)
        self.built.append(self.kind())
        return self.built[-1]


class Served:
    """A factory behind one or more addresses."""

    def __init__(self, reactor: Any, factory: Any = None) -> None:
        self.reactor = reactor
        self.factory = factory or Inners()
        self.refusals: list[tuple[str, str]] = []
        self.sockets: list[socket.socket] = []
        self.listening: list[OpenPort] = []

    def listen(self, text: str) -> OpenPort:
        results: list[Any] = []
        opening = listen(
            self.reactor,
            parse_address(text, "stream"),
            self.factory,
            refused=lambda reason, host: self.refusals.append((reason, host)),
        )
        opening.addBoth(results.append)
        if not isinstance(results[0], OpenPort):
            results[0].raiseException()
        self.listening.append(results[0])
        return self.listening[-1]

    def connect(self, data: bytes = b"") -> socket.socket:
        host: Any = self.listening[-1].port.getHost()
        client = socket.socket(socket.AF_UNIX if hasattr(host, "name") else socket.AF_INET)
        client.connect(host.name if hasattr(host, "name") else ("127.0.0.1", host.port))
        client.sendall(data)
        client.setblocking(False)
        self.sockets.append(client)
        return client

    def inner(self, data: bytes = b"") -> tuple[socket.socket, Any]:
        """Connect, send, and return the protocol that was built for it as well."""
        before = len(self.factory.built)
        client = self.connect(data)
        self.until(lambda: len(self.factory.built) > before)
        return client, self.factory.built[-1]

    def turn(self, count: int = STILL) -> None:
        for _ in range(count):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0)

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline
            self.turn(1)

    def read(self, client: socket.socket, size: int | None = None) -> bytes:
        """Read so many bytes, or all to the end."""
        data, deadline = b"", time.monotonic() + PATIENCE
        while size is None or len(data) < size:
            assert time.monotonic() < deadline, f"no end after {data!r}"
            self.turn(1)
            try:
                chunk = client.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return data + b"<reset>"
            if not chunk:
                break
            data += chunk
        return data

    def close(self) -> None:
        for client in self.sockets:
            client.close()
        self.turn()
        stopping = [listening.stop() for listening in self.listening]
        self.turn()
        assert all(isinstance(each, Deferred) and each.called for each in stopping)
        assert getattr(self.factory, "started", 0) == 0
        if isinstance(self.factory, GuardedFactory):
            self.factory.guard.close()
        assert self.reactor.getDelayedCalls() == []
        shut(self.reactor)


def on_reactor(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Serve on the reactor that is the parameter. For a fixture."""
    made = Served(request.param())
    yield made
    made.close()


#: The first bytes of a header of version 2.
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """Write a header of version 2, which may be wrong about its length."""
    size = len(block) if length is None else length
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", size) + block


def v2_inet(source: Endpoint, destination: Endpoint, family: int | None = None, behind: bytes = b"") -> bytes:
    """Write a header of version 2 with the addresses of a connection over IPv4 or IPv6."""
    hosts = [ipaddress.ip_address(host) for host, _ in (source, destination)]
    block = b"".join(host.packed for host in hosts) + struct.pack("!HH", source[1], destination[1])
    return v2(1, family or (0x11 if hosts[0].version == 4 else 0x21), block + behind)


V6 = v2_inet(("2001:db8::9", 4000), ("2001:db8::1", 443))
