"""Hooks of stream transports for observing and limiting connections, used by `netsvc.guard` and `proxy:`.

The transports of `netsvc.reactor.streams` have these hooks built in, at no cost while they are unused. Any other
transport is wrapped in a `Layer`, a protocol wrapper with the same hooks that costs some calls for each read and each
write. A `Door` chooses between the two for each connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from typing import Protocol as Interface

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionClosed, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

__all__ = ["ByteLimit", "Door", "Hooked", "Hooks", "Layer", "Observer", "socket_transport"]

#: The most wrappers around a socket's transport: PROXY, TLS, and those that a program adds.
_DEEPEST = 8

_log = Logger(namespace="netsvc.reactor")


class Observer(Interface):
    """Watches one connection."""

    def connection_lost(self, reason: Failure, close: Callable[[Failure], None]) -> None:
        """Handle the end of a connection whose socket is still open.

        The observer must call `close(reason)`, which closes the socket and calls the protocol's `connectionLost`; an
        exception of that is passed on. Before, it may call the `keep_socket` of the transport.
        """


class ByteLimit(Interface):
    """Limits how many bytes a connection reads or writes."""

    def allow(self) -> int:
        """Return how many bytes one system call may transfer.

        Raises `BlockingIOError` if it may transfer none. Then the limit has called the transport's `hold_reading` or
        `hold_writing`, and calls `release_reading` or `release_writing` later.
        """

    def spend(self, size: int) -> None:
        """Count transferred bytes."""

    def close(self) -> None:
        """Return unused bytes and stop waiting, as the connection is closed."""


class Hooks:
    """The hooks of a transport, built in or of a layer. `protocol` can be replaced."""

    protocol: Any
    #: Called when the connection ends.
    observer: Observer | None = None
    #: The limits of reading and writing.
    reads: ByteLimit | None = None
    writes: ByteLimit | None = None
    #: Whether the kernel counts received and sent bytes (TCP_INFO). Otherwise the transport keeps the byte counts, the
    #: time of the last transfer (in seconds of its reactor), and whether the peer closed first.
    counted_by_kernel = False
    received = sent = 0
    moved_at = 0.0
    peer_first: bool | None = None
    #: Received bytes that were not for the protocol: the PROXY header.
    preamble = 0
    #: Override the results of `getPeer` and `getHost`.
    addresses: tuple[Any, Any] | None = None
    #: Whether nobody in a network can read the connection, if a proxy has said so, or has not; None: ask the addresses.
    confidential: bool | None = None

    def keep_socket(self) -> Any:
        """Return the socket, whose owner the caller becomes; None if the transport cannot keep it open.

        For the observer, before an orderly end: `close` then sends the end of the stream and leaves the socket open.
        """
        return None

    def _observed(self, reason: Failure, close: Callable[[Failure], None]) -> None:
        """Close the connection, through the observer if there is one."""
        observer, self.observer = self.observer, None
        if observer is None:
            close(reason)
        else:
            observer.connection_lost(reason, close)


class Hooked(Hooks, FileDescriptor):
    """A reactor's transport with built-in hooks."""

    reactor: Any
    #: Received data that the protocol gets before anything else.
    unread = b""
    #: Whether reading is suspended, regardless of the protocol.
    reading_held = False
    #: Whether writing is suspended.
    writing_held = False
    # What to do when it is no longer held.
    _reads_later = _writes_later = True

    def startReading(self) -> None:
        """Start reading, once reading is not held and the unread data is delivered."""
        if self.reading_held:
            self._reads_later = True
        elif self.unread:
            # The protocol does not expect data from inside `resumeProducing`.
            if not self._reads_later:
                self._reads_later = True
                self.reactor.callLater(0, self.deliver_unread)
        else:
            self._start_reading()

    def stopReading(self) -> None:
        """Stop reading."""
        if self.reading_held or self.unread:
            self._reads_later = False
        else:
            self._stop_reading()

    def _start_reading(self) -> None:
        super().startReading()

    def _stop_reading(self) -> None:
        super().stopReading()

    def hold_reading(self) -> None:
        """Suspend reading until `release_reading`."""
        self._stop_reading()
        self.reading_held = self._reads_later = True

    def release_reading(self) -> None:
        """Resume reading, if the protocol wants to read."""
        self.reading_held = False
        if self.unread:
            self.deliver_unread()
        elif self._reads_later:
            self.startReading()

    def deliver_unread(self) -> None:
        """Deliver the unread data to the protocol, if it reads."""
        closes = self.disconnecting or not self.connected or getattr(self, "_aborting", False)
        if closes or self.reading_held or not self.unread or not self._reads_later:
            return
        try:
            self._deliver()
        except Exception:  # noqa: BLE001  (as when the reactor calls it)
            failure = Failure()
            if self.observer is None:
                _log.failure("a protocol failed in dataReceived", failure)
            self.connectionLost(failure)

    def _deliver(self) -> None:
        data, self.unread = self.unread, b""
        self.startReading()
        self.protocol.dataReceived(data)

    def startWriting(self) -> None:
        """Start writing, once writing is not held."""
        if self.writing_held:
            self._writes_later = True
        else:
            super().startWriting()

    def stopWriting(self) -> None:
        """Stop writing."""
        if self.writing_held:
            self._writes_later = False
        else:
            super().stopWriting()

    def hold_writing(self) -> None:
        """Suspend writing until `release_writing`."""
        super().stopWriting()
        self.writing_held = self._writes_later = True

    def release_writing(self) -> None:
        """Resume writing, if there is something to write."""
        self.writing_held = False
        if self._writes_later:
            super().startWriting()

    def _stop_producer(self, close: Callable[[Failure], None], reason: Failure) -> None:
        """Stop the producer, then call `close`, even if the producer raises an exception, which is passed on."""
        self.disconnected, self.connected = 1, 0
        producer, self.producer = self.producer, None
        try:
            if producer is not None:
                producer.stopProducing()
        finally:
            close(reason)

    def _close_limits(self) -> None:
        for limit in (self.reads, self.writes):
            if limit is not None:
                limit.close()
        self.reads = self.writes = None


class Layer(Hooked):
    """A transport with hooks on top of a transport without, which replaces it for the protocol.

    It buffers written data while the transport below has enough to send. So limits hold, and the connection of a peer
    that does not read counts as idle. It counts bytes itself, without those that a TLS or PROXY layer below adds.

    The transport below has closed its socket before it reports the end. So a layer with an observer duplicates the
    socket when it asks for an orderly end; `socket` is the duplicate.
    """

    # The duplicate, until it is kept or closed.
    _duplicate: socket.socket | None = None

    def __init__(self, below: Any, protocol: Any, clock: Any) -> None:
        super().__init__(clock)
        self.below = below
        self.protocol = protocol
        self.connected = 1
        self.moved_at = clock.seconds()
        self.confidential = getattr(below, "confidential", None)
        self._wants_to_write = self._flushing = False
        # Whether the transport below supports producers; whether one is registered there, and whether it is paused.
        self._paced = hasattr(socket_transport(below), "doWrite")
        self._registered = self.below_full = False
        directlyProvides(self, providedBy(below))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)

    @property
    def transport(self) -> Any:
        """The transport below."""
        return self.below

    def getPeer(self) -> Any:
        """See `ITransport.getPeer`."""
        return self.addresses[0] if self.addresses else self.below.getPeer()

    def getHost(self) -> Any:
        """See `ITransport.getHost`."""
        return self.addresses[1] if self.addresses else self.below.getHost()

    def fileno(self) -> int:
        """Return the descriptor of the transport below."""
        return self.below.fileno()  # type: ignore[no-any-return]

    # Calls from the transport below.

    def data_received(self, data: bytes) -> None:
        """Deliver received data to the protocol, within the limit."""
        self.received += len(data)
        self.moved_at = self.reactor.seconds()
        if self.disconnecting:
            return
        if self.reading_held or self.unread:
            self.unread += data
        elif self.reads is None:
            try:
                self.protocol.dataReceived(data)
            except BaseException:
                # The reactor closes the connection in order.
                self._duplicate_socket()
                raise
        else:
            self.unread, self._reads_later = data, True
            self._deliver()

    def _deliver(self) -> None:
        """Deliver as much as the limit allows; keep the rest as unread, and pause the transport below."""
        if not self.unread or not self._reads_later or self.reading_held or not self.connected or self.disconnecting:
            return
        size = len(self.unread)
        if self.reads is not None:
            try:
                size = min(size, self.reads.allow())
            except BlockingIOError:
                return
            self.reads.spend(size)
        data, self.unread = self.unread[:size], self.unread[size:]
        if self.unread:
            # Let other connections take their turns.
            self.hold_reading()
            self.reactor.callLater(0, self.release_reading)
        else:
            self.startReading()
        self.protocol.dataReceived(data)

    def read_lost(self) -> None:
        """Report the half-close of the peer to the protocol; close the connection if it does not support that."""
        self.peer_first = not (self.disconnecting or self._writeDisconnected)
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            # As in Twisted, this closes the connection, and unsent data is lost.
            self._close_below()

    def connectionLost(self, reason: Failure) -> None:
        """Handle the loss of the connection below."""
        if self.connected:
            if self.unread and self._reads_later and not self.disconnecting and reason.type is ConnectionDone:
                # This data was received before the end.
                data, self.unread = self.unread, b""
                try:
                    self.protocol.dataReceived(data)
                except BaseException:  # noqa: BLE001  (the observer gets it)
                    reason = Failure()
            self._observed(reason, self._lost)
            if not isinstance(reason.value, ConnectionClosed):
                # The protocol failed.
                self.abortConnection()

    def _lost(self, reason: Failure) -> None:
        self._close_limits()
        self._stop_producer(self._closed, reason)

    def _closed(self, reason: Failure) -> None:
        if self._duplicate is not None:
            self._duplicate.close()
            self._duplicate = None
        # Break the reference cycle.
        protocol, self.protocol = self.protocol, None
        protocol.connectionLost(reason)

    # Calls to the transport below.

    def _start_reading(self) -> None:
        self.below.resumeProducing()

    def _stop_reading(self) -> None:
        self.below.pauseProducing()

    def startWriting(self) -> None:
        """Write as much as possible now, and the rest later."""
        self._wants_to_write = True
        if not self._flushing:
            self._flush()

    def stopWriting(self) -> None:
        """Stop writing."""
        self._wants_to_write = False

    def hold_writing(self) -> None:
        """See `Hooked`."""
        self.writing_held = True

    def release_writing(self) -> None:
        """See `Hooked`."""
        self.writing_held = False
        self._flush()

    def _flush(self) -> None:
        self._flushing = True
        try:
            while self.connected and self._wants_to_write and not (self.writing_held or self.below_full):
                if self.doWrite():
                    self._close_below()
                    return
        finally:
            self._flushing = False

    def writeSomeData(self, data: bytes) -> int:
        """Write a piece to the transport below; see `FileDescriptor.writeSomeData`."""
        size = len(data)
        if not size:
            return 0
        if self.writes is not None:
            try:
                size = min(size, self.writes.allow())
            except BlockingIOError:
                return 0
        if self._paced:
            size = min(size, self.bufferSize)
            if not self._registered:
                self._registered = True
                self.below.registerProducer(_Flow(self), True)
        self.moved_at = self.reactor.seconds()
        self.below.write(bytes(data[:size]))
        self.sent += size
        if self.writes is not None:
            self.writes.spend(size)
        return size

    def flow(self) -> None:
        """Continue writing: the transport below has sent its data."""
        self.below_full = False
        self.moved_at = self.reactor.seconds()
        if not self._flushing:
            self._flush()

    def _let_go(self) -> None:
        if self._registered:
            self._registered = False
            self.below.unregisterProducer()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See `IConsumer.registerProducer`."""
        if self._paced:
            super().registerProducer(producer, streaming)
        else:
            self.below.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        if self._paced:
            super().unregisterProducer()
        else:
            self.below.unregisterProducer()

    def loseConnection(self, *arguments: Any) -> None:
        """Close the connection after everything is written; see `ITransport.loseConnection`."""
        if self.connected and not self.disconnecting:
            self.disconnecting = 1
            if self._writeDisconnected:
                self._close_below()
            else:
                # Received data is dropped meanwhile: pausing the transport below would stop the TLS shutdown.
                self.startWriting()

    def _closeWriteConnection(self) -> None:
        self._let_go()
        # A wrapper would pass the call on below TLS; so its class must have the method.
        if hasattr(type(self.below), "loseWriteConnection"):
            self.below.loseWriteConnection()
        else:
            self._close_below()

    def _close_below(self) -> None:
        self._let_go()
        self._duplicate_socket()
        self.below.loseConnection()

    def _duplicate_socket(self) -> None:
        below = getattr(socket_transport(self.below), "socket", None)
        if self.observer is None or self._duplicate is not None or not isinstance(below, socket.socket):
            return
        if below.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):
                self.socket = self._duplicate = below.dup()

    def keep_socket(self) -> Any:
        """See `Hooks.keep_socket`."""
        kept, self._duplicate = self._duplicate, None
        return kept

    def abortConnection(self) -> None:
        """Close the connection at once; see `ITCPTransport.abortConnection`."""
        self._wants_to_write = False
        getattr(self.below, "abortConnection", self.below.loseConnection)()


class _Flow:
    """The producer of a `Layer` at the transport below, which pauses and resumes it."""

    __slots__ = ("_layer",)

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def pauseProducing(self) -> None:
        self._layer.below_full = True

    def resumeProducing(self) -> None:
        self._layer.flow()

    def stopProducing(self) -> None:
        """Do nothing: the layer's `connectionLost` is called as well."""


@implementer(IHalfCloseableProtocol)
class Door(Protocol):
    """The first protocol of a connection, built before its transport is known.

    A transport with hooks gets the real protocol at once. Otherwise this protocol stays between the transport and a
    `Layer`.
    """

    protocol: Any
    clock: Any
    _layer: Layer

    def __init__(self, protocol: Any, clock: Any) -> None:
        self.protocol = protocol
        self.clock = clock

    def makeConnection(self, transport: Any) -> None:
        """Connect the protocol to the transport, or to a `Layer` on top of it."""
        # Checked by class: wrappers pass on the attributes of the transport that they wrap.
        if not isinstance(transport, Hooks):
            transport = self._layer = Layer(transport, self.protocol, self.clock)
        self.enter(transport)

    def enter(self, transport: Any) -> None:
        """Connect the protocol to a transport with hooks."""
        transport.protocol = self.protocol
        self.protocol.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        self._layer.data_received(data)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol.readConnectionLost`."""
        self._layer.read_lost()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol.writeConnectionLost`."""
        if IHalfCloseableProtocol.providedBy(self._layer.protocol):
            self._layer.protocol.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`."""
        self._layer.connectionLost(reason)


def socket_transport(transport: Any) -> Any:
    """Return the transport that owns the socket, below all wrappers; None if it is not connected yet."""
    for _ in range(_DEEPEST):
        if transport is None or not hasattr(transport, "transport"):
            return transport
        transport = transport.transport
    return None
