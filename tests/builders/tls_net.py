"""The fast reactor turned by hand, with a TLS port and clients on real sockets."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from netsvc.reactor.tls_socket import encrypt
from tests.builders.pems import client_context
from tests.builders.turned import PATIENCE, Net, Wire


class Watching:
    """An observer of a transport, which notes why it ends."""

    reason: Any = None

    def connection_lost(self, reason: Failure, close: Callable[[Failure], None]) -> None:
        """See `netsvc.reactor.hooks.Observer`."""
        self.reason = reason.type
        close(reason)


class Client:
    """A TLS client: each of its steps turns the reactor of the server until it is done."""

    def __init__(self, net: TLSNet, version: ssl.TLSVersion, offered: tuple[str, ...] = ()) -> None:
        self._net = net
        self.raw = socket.create_connection(("127.0.0.1", net.port.getHost().port))
        self.raw.setblocking(False)
        context = client_context(*offered)
        context.maximum_version = version
        self.tls = context.wrap_socket(
            self.raw, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        net.peers.append(self.tls)

    def step(self, call: Callable[[], Any]) -> Any:
        """Call until it does not have to wait any more; return its result."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                return call()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._net.turn()
        raise AssertionError("it does not come to that")

    def shake_hands(self) -> None:
        """Complete the handshake, on both sides."""
        self.step(self.tls.do_handshake)
        served: Any = self._net.wires[-1].transport
        self._net.until(lambda: served._handshakeDone)

    def send(self, data: bytes) -> None:
        """Send everything."""
        while data:
            data = data[self.step(partial(self.tls.send, data[:100_000])) :]

    def read(self, size: int) -> bytes:
        """Read so many bytes; less at the end of the stream."""
        data = bytearray()
        while len(data) < size:
            left = min(65536, size - len(data))
            try:
                more = self.step(partial(self.tls.recv, left))
            except ssl.SSLZeroReturnError:
                break
            if not more:
                break
            data += more
        return bytes(data)

    def close_notify(self) -> None:
        """Say that nothing more is sent, and read on."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()


class TLSNet(Net):
    """A fast reactor that is turned by hand, with a TLS port."""

    def __init__(self, context: SSL.Context) -> None:
        super().__init__()
        self.build: Callable[[], Any] = Wire
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build_protocol  # type: ignore[method-assign,assignment]
        self.port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        encrypt(self.port, lambda sock: SSL.Connection(context, sock))

    def _build_protocol(self, _: object) -> Any:
        self.wires.append(self.build())
        return self.wires[-1]

    def client(
        self, version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED, offered: tuple[str, ...] = ()
    ) -> Client:
        """Begin a connection, whose handshake is to be done."""
        count = len(self.wires)
        client = Client(self, version, offered)
        self.until(lambda: len(self.wires) > count)
        self.wires[-1].transport.observer = Watching()  # type: ignore[union-attr]
        return client

    def converse(
        self,
        received: Callable[[Any, bytes], None] = lambda wire, data: None,
        version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> tuple[Any, Client]:
        """Make a connection; return the protocol of the server, and the client."""
        client = self.client(version)
        wire = self.wires[-1]
        wire.received = received
        client.shake_hands()
        # The tickets for later sessions, which TLS 1.3 sends after the handshake: unread, they would be a reset.
        with suppress(ssl.SSLWantReadError):
            client.tls.recv(1)
        return wire, client

    def close(self) -> None:
        """Close everything, and see that nothing is left."""
        self.port.stopListening()
        self.turn()
        super().close()
