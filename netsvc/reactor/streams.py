"""Stream transports that need fewer system calls and Python calls than Twisted's. For `netsvc.reactor.epoll`.

They are Twisted's transports with three differences:

- Writing does not wait for EPOLLOUT. A transport is flushed when its protocol returns from `dataReceived`, or, if it
  was written to from elsewhere, before the loop waits again. It waits for EPOLLOUT only if the kernel does not take
  everything. So all data of one iteration is sent by one system call. Nothing is sent from inside `write`, so that no
  connection can be lost there; `write_at_once` sends, and leaves an error to the next flush.
- The reactor calls `doRead` directly, without a logging context for each call.
- A single piece of data that the kernel takes is not copied.

Everything else (producers, half-close, aborting, TLS) is Twisted's code, called in Twisted's order.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from functools import lru_cache
from typing import Any

from twisted.internet import error, main, tcp, unix
from twisted.internet.address import IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.posixbase import PosixReactorBase
from twisted.python import log
from twisted.python.failure import Failure

from netsvc.reactor.accept import AcceptMixin
from netsvc.reactor.extension import native
from netsvc.reactor.hooks import Hooked, Hooks

__all__ = ["BEING_FLUSHED", "FlushedMixin", "PlainTCPPort", "PlainUNIXPort", "TCPConnector", "TCPPort", "UNIXConnector"]
__all__ += ["UNIXPort", "adopt_tcp_port"]

#: Tells the kernel that more follows at once, so that it does not send a partial segment. Linux has it.
_MORE: int = getattr(socket, "MSG_MORE", 0)
_DONE = Failure(main.CONNECTION_DONE)
_FULL = frozenset((errno.EAGAIN, errno.ENOBUFS))

# The states of `FlushedMixin.flushing`, besides 0.

#: On the reactor's list, which is flushed before the loop waits again.
QUEUED = 1
#: The reactor is calling `doWrite`, not because of EPOLLOUT.
BEING_FLUSHED = 2
#: The protocol is in `dataReceived` and has written nothing yet; has only called `write` once; or has done more.
READING = 3
ANSWERED = 4
ASKED = 5
#: It waits for EPOLLOUT, and a pull producer is being asked; it has asked to be called again.
PULLING = 6
PULLED = 7


class FlushedMixin:
    """Makes the reactor flush a transport, which then waits for EPOLLOUT only if necessary."""

    reactor: Any
    connected: Any
    doRead: Any
    readConnectionLost: Any
    connectionLost: Any
    flushing = 0
    #: Whether it waits for EPOLLOUT.
    waiting = False

    def startWriting(self) -> None:
        """Schedule a call of `doWrite`: soon, or when the connection is made if it is not yet."""
        if self.waiting:
            if self.flushing == PULLING:
                self.flushing = PULLED
            return
        if self.flushing >= READING:
            self.flushing = ASKED
        elif not self.flushing:
            if self.connected:
                self.flushing = QUEUED
                self.reactor.flushes.append(self)
            else:
                self.wait_to_write()

    def stopWriting(self) -> None:
        """Cancel calls of `doWrite`."""
        self.flushing = 0
        if self.waiting:
            self.waiting = False
            self.reactor.removeWriter(self)

    def wait_to_write(self) -> None:
        """Schedule a call of `doWrite` for when the kernel has room."""
        self.flushing = 0
        if not self.waiting:
            self.waiting = True
            self.reactor.addWriter(self)

    def hold_writing(self) -> None:
        """Suspend writing until `release_writing`, as if the kernel had no room, but without polling it."""
        self.flushing = 0
        self.waiting = True
        self.reactor.removeWriter(self)

    def release_writing(self) -> None:
        """Resume writing, if there is something to write."""
        if self.waiting:
            self.reactor.addWriter(self)


class _TCPServer(Hooked, tcp.Server):
    """An accepted TCP connection of any reactor."""

    counted_by_kernel = True
    socket: Any
    #: The address of the peer, if the port has given it.
    peer: Any = None
    _name = ""
    # Whether the peer has closed its side.
    _at_end = False
    # Whether the observer keeps the socket.
    _is_kept = False

    def __repr__(self) -> str:
        # Twisted sets `repstr` of an adopted connection later.
        given: str = vars(self).get("repstr", "")
        return given or f"<{type(self.protocol).__name__} #{self.sessionno} on {self.server._realPortNumber}>"

    @property
    def logstr(self) -> str:
        """The name of the connection in Twisted's log lines, with its current protocol."""
        if self._name or not hasattr(self, "protocol"):
            return self._name or "a closed connection"
        return f"{self._getLogPrefix(self.protocol)},{self.sessionno},{self.hostname}"

    @logstr.setter
    def logstr(self, name: str) -> None:
        # The name of an accepted connection is computed on demand.
        if self.server is None or not hasattr(self, "protocol"):
            self._name = name

    def logPrefix(self) -> str:
        """Return `logstr`."""
        return self.logstr

    def getPeer(self) -> Any:
        """See `ITransport.getPeer`."""
        if self.addresses:
            return self.addresses[0]
        return self.peer or super().getPeer()

    def getHost(self) -> Any:
        """See `ITransport.getHost`."""
        return self.addresses[1] if self.addresses else super().getHost()

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """Start TLS; see `ITLSTransport.startTLS`. The connection ends as one of a `tls:` address does."""
        # Imported late, as it loads OpenSSL.
        from netsvc.reactor.tls import start_tls

        start_tls(self, ctx, client=not normal)

    def doRead(self) -> Any:
        """Read once, within the limit; see `IReadDescriptor.doRead`."""
        try:
            return self._read_once()
        except Exception as fault:
            if self.observer is None:
                raise
            # The reactor closes the connection, as for a raised exception, but does not log what the observer logs.
            return fault

    def _read_once(self) -> Any:
        reads = self.reads
        if reads is None:
            return super().doRead()
        try:
            data = self.socket.recv(reads.allow())
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        reads.spend(len(data))
        return self._dataReceived(data)

    def writeSomeData(self, data: Any) -> Any:
        """Write once, within the limit; see `FileDescriptor.writeSomeData`."""
        if self.writes is None or not data:
            return super().writeSomeData(data)
        try:
            return self.send_now(data)
        except OSError as failure:
            return 0 if failure.errno in _FULL else main.CONNECTION_LOST

    def send_now(self, data: Any, flags: int = 0) -> int:
        """Send within the limit; see send(2). Raises `OSError`."""
        writes = self.writes
        if writes is None:
            sent: int = self.socket.send(data, flags)
        else:
            most = writes.allow()
            sent = self.socket.send(data if len(data) <= most else memoryview(data)[:most], flags)
            writes.spend(sent)
        return sent

    def send_file(self, descriptor: int, offset: int, size: int) -> int:
        """Send from a file within the limit; see sendfile(2). Raises `OSError`."""
        writes = self.writes
        if writes is not None:
            size = min(size, writes.allow())
        sent = os.sendfile(self.fileno(), descriptor, offset, size)
        if writes is not None:
            writes.spend(sent)
        return sent

    def readConnectionLost(self, reason: Failure) -> None:
        """See `IHalfCloseableDescriptor.readConnectionLost`."""
        self._at_end = True
        super().readConnectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Close the connection, unless it is closed; see `IFileDescriptor.connectionLost`."""
        if self.connected:
            self._observed(reason, self._lost)

    def _lost(self, reason: Failure) -> None:
        self._close_limits()
        self._stop_producer(super().connectionLost, reason)

    def keep_socket(self) -> Any:
        """See `Hooks.keep_socket`."""
        self._is_kept = True
        return self.socket

    def _closeSocket(self, orderly: bool) -> None:
        if self._is_kept:
            # Not shut down for reading: what the peer still sends would reset the connection.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
        elif orderly and (self._at_end or self._writeDisconnected):
            # No shutdown(2) is needed, as no other process has the socket.
            self.socket.close()
        else:
            super()._closeSocket(orderly)


class _UNIXServer(_TCPServer, unix.Server):
    """An accepted UNIX connection of any reactor."""

    counted_by_kernel = False
    _sendmsgQueue: list[Any]

    def _read_once(self) -> Any:
        # Bytes and descriptors.
        reads = self.reads
        if reads is None:
            return unix.Server.doRead(self)
        try:
            self.bufferSize = reads.allow()
        except BlockingIOError:
            return None
        try:
            return unix.Server.doRead(self)
        finally:
            del self.bufferSize

    def _dataReceived(self, data: Any) -> Any:
        if data:
            self.received += len(data)
            self.moved_at = self.reactor.seconds()
            if self.reads is not None:
                self.reads.spend(len(data))
        return super()._dataReceived(data)

    def writeSomeData(self, data: Any) -> Any:
        """Write bytes and descriptors, if there are any: an empty send would fail if the peer has closed."""
        if not data and not self._sendmsgQueue:
            return 0
        writes = self.writes
        if writes is None or not data:
            sent = unix.Server.writeSomeData(self, data)
        else:
            try:
                most = writes.allow()
            except BlockingIOError:
                return 0
            # Each descriptor is sent with one byte.
            later = self._sendmsgQueue[most:]
            del self._sendmsgQueue[most:]
            sent = unix.Server.writeSomeData(self, data[:most])
            self._sendmsgQueue += later
        # An exception as the result means that the connection is lost.
        if sent.__class__ is int and sent > 0:
            self._count(sent)
            if writes is not None:
                writes.spend(sent)
        return sent

    def send_now(self, data: Any, flags: int = 0) -> int:
        """See `_TCPServer`."""
        return self._count(super().send_now(data, flags))

    def send_file(self, descriptor: int, offset: int, size: int) -> int:
        """See `_TCPServer`."""
        return self._count(super().send_file(descriptor, offset, size))

    def _count(self, sent: int) -> int:
        self.sent += sent
        self.moved_at = self.reactor.seconds()
        return sent

    def keep_socket(self) -> Any:
        """Return None: the kernel counts what a UNIX socket holds as memory of the receiver, and frees it with that."""
        return None

    def readConnectionLost(self, reason: Failure) -> None:
        """See `IHalfCloseableDescriptor.readConnectionLost`."""
        self.peer_first = not (self.disconnecting or self._writeDisconnected)
        super().readConnectionLost(reason)


class _FlushedStream(FlushedMixin, Hooks):
    """The parts that flushed TCP servers and clients share."""

    TLS: bool
    socket: Any
    protocol: Any
    dataBuffer: bytes
    offset: int
    producer: Any
    streamingProducer: bool
    producerPaused: bool
    disconnecting: Any
    bufferSize: int
    SEND_LIMIT: int
    _tempDataBuffer: list[bytes]
    _tempDataLen: int
    _writeDisconnecting: bool
    _writeDisconnected: bool
    _maybePauseProducer: Any
    writeSomeData: Any
    send_now: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Read for every message; instance attributes are faster than class attributes.
        self.flushing = 0
        self.waiting = False
        self.TLS = False
        self.producer = None
        self.streamingProducer = self.producerPaused = False
        self.dataBuffer = b""
        self.disconnecting = 0
        self._writeDisconnecting = self._writeDisconnected = False
        self.reads = self.writes = None
        super().__init__(*args, **kwargs)

    def write(self, data: bytes) -> None:
        """Write bytes; see `ITransport.write`."""
        if self.TLS or type(data) is not bytes:
            super().write(data)  # type: ignore[misc]
        elif data and self.connected and not self._writeDisconnected:
            self._tempDataBuffer.append(data)
            self._tempDataLen += len(data)
            if self.producer is not None and len(self.dataBuffer) + self._tempDataLen > self.bufferSize:
                self._maybePauseProducer()
            if self.flushing == READING:
                self.flushing = ANSWERED
            elif self.flushing or self.waiting:
                self.startWriting()
            else:
                self.flushing = QUEUED
                self.reactor.flushes.append(self)

    def write_at_once(self, data: bytes) -> None:
        """Write bytes as `write` does, and send them now if that is safe: for the same bytes to many connections.

        It saves most of what writing to an idle connection costs besides the system call. When several connections
        were ready in this iteration more may follow, and all of it is sent together.
        """
        if (
            self.flushing
            or self.waiting
            or self.writes is not None
            or self.reactor.ready > 1
            or self.TLS
            or not self.connected
            or self._writeDisconnected
        ):
            self.write(data)
            return
        try:
            sent = self.socket.send(data)
        except OSError:
            # `doWrite` will get the error as well.
            sent = 0
        if sent != len(data):
            self.write(data[sent:])

    def doRead(self) -> Any:
        """Read once, pass the data to the protocol, and send its answer."""
        reads = self.reads
        try:
            data = self.socket.recv(65536 if reads is None else reads.allow())
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if reads is not None:
            reads.spend(len(data))
        if not data:
            return main.CONNECTION_DONE
        if self.flushing or self.waiting:
            self.protocol.dataReceived(data)
            return None
        self.flushing = READING
        try:
            self.protocol.dataReceived(data)
        except BaseException:
            # The connection is about to be lost, with everything written to it.
            self.flushing = 0
            raise
        if self.flushing == ANSWERED and (
            self.producer is None or (self.streamingProducer and not self.producerPaused)
        ):
            # The fast path for the most common case: one answer, sent at once.
            written = self._tempDataBuffer
            try:
                sent = self.socket.send(written[0]) if self.writes is None else self.send_now(written[0])
            except OSError:
                # `doWrite` will get the error as well.
                sent = 0
            if sent == self._tempDataLen:
                written.clear()
                self._tempDataLen = self.flushing = 0
                return None
            self.dataBuffer = written.pop()
            self._tempDataLen = 0
            self.offset = sent
        if self.flushing >= ANSWERED:
            self.flush_answer()
        elif self.flushing == READING:
            self.flushing = 0
        return None

    def flush_answer(self) -> None:
        """Send what the protocol has written in `dataReceived`, or what the kernel has not taken of it."""
        self.flushing = BEING_FLUSHED
        failed = self.doWrite()
        if failed:
            # Not returned, as the reactor would take it for a read error.
            self.reactor._disconnectSelectable(self, failed, False)
        elif self.flushing == BEING_FLUSHED:
            self.wait_to_write()

    #: What `netsvc.reactor.native.Stream` calls where it does not have the common case.
    write_slowly = write
    read_slowly = doRead

    def doWrite(self) -> Any:
        """Send the written data; see `IWriteDescriptor.doWrite`."""
        written = self._tempDataBuffer
        if self.disconnecting and not written and not self.dataBuffer and self.producer is None:
            # Everything is sent.
            self.flushing = 0
            if self.waiting:
                self.stopWriting()
            return main.CONNECTION_DONE
        if self._writeDisconnecting and not written and not self.dataBuffer and self.producer is None:
            return self._half_closed()
        if not written and not self.dataBuffer and self.producer is not None and not self.streamingProducer:
            self._pull()
            return None
        if (
            not written
            or self.dataBuffer
            or (self.producer is not None and (self.producerPaused or not self.streamingProducer))
            or self.disconnecting
            or self._tempDataLen > self.SEND_LIMIT
        ):
            # Not the simple case: leave it to Twisted's code.
            return super().doWrite()  # type: ignore[misc]
        data = written[0] if len(written) == 1 else b"".join(written)
        # The end of the stream goes into the same segment.
        flags = _MORE if self._writeDisconnecting else 0
        try:
            sent: Any = self.socket.send(data, flags) if self.writes is None else self.send_now(data, flags)
        except OSError:
            # `writeSomeData` tries again and interprets the error.
            sent = self.writeSomeData(data)
            if sent.__class__ is not int:
                return sent
        written.clear()
        self._tempDataLen = 0
        if sent == len(data):
            if self._writeDisconnecting:
                return self._half_closed()
            self.flushing = 0
            if self.waiting:
                self.stopWriting()
        else:
            self.dataBuffer = data
            self.offset = sent
        return None

    def _pull(self) -> None:
        """Ask a pull producer, as `FileDescriptor.doWrite` does after sending nothing.

        While it says each time that it waits for room, or goes on, EPOLLOUT is not turned off and on again.
        """
        self.producerPaused = False
        if not self.waiting:
            self.flushing = 0
            self.producer.resumeProducing()
            return
        self.flushing = PULLING
        try:
            self.producer.resumeProducing()
        finally:
            if self.flushing == PULLING and self.connected:
                # It goes on later, by itself.
                self.stopWriting()
            elif self.flushing == PULLED:
                self.flushing = 0

    def _half_closed(self) -> Any:
        """Send the end of the stream, as `FileDescriptor.doWrite` does after the last byte."""
        self.flushing = 0
        if self.waiting:
            self.stopWriting()
        self._writeDisconnected = True
        return self._closeWriteConnection()

    def _closeWriteConnection(self) -> None:
        # The same as Twisted, except that it asks the class first, which is much faster.
        if not _half_closes(self.protocol.__class__):
            super()._closeWriteConnection()  # type: ignore[misc]
            return
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        try:
            self.protocol.writeConnectionLost()
        except BaseException:  # noqa: BLE001  (it ends this connection only)
            failure = Failure()
            log.err(failure)
            self.connectionLost(failure)


class _NoExtension:
    """Without the C extension, all of a stream is in Python."""


#: The first base of streams: `write` and `doRead` in C, and the attributes that they read.
_Stream: Any = _NoExtension if native is None else native.Stream


@lru_cache(maxsize=64)
def _half_closes(protocol: type) -> bool:
    return bool(IHalfCloseableProtocol.implementedBy(protocol))


class FlushedTCPServer(_Stream, _FlushedStream, _TCPServer):  # type: ignore[misc]
    """An accepted TCP connection of the fast reactor."""

    def __init__(  # noqa: PLR0917  (as Twisted calls it)
        self, sock: Any, protocol: Any, client: Any, server: Any, sessionno: int, reactor: Any
    ) -> None:
        # The same as Twisted, except that the names of the connection are computed on demand.
        self.flushing = 0
        self.waiting = False
        self.TLS = False
        self.producer = None
        self.streamingProducer = self.producerPaused = False
        self.dataBuffer = b""
        self.disconnecting = 0
        self._writeDisconnecting = self._writeDisconnected = False
        self.reads = self.writes = None
        self._tempDataBuffer: list[bytes] = []
        self._tempDataLen = 0
        self.reactor = reactor
        self.socket = sock
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        self.fileno = sock.fileno
        self.protocol = protocol
        if len(client) != 2:
            self._addressType = IPv6Address
        self.server = server
        self.client = client
        self.sessionno = sessionno
        self.hostname = client[0]
        reactor.addReader(self)
        self.connected = 1

    def readConnectionLost(self, reason: Failure) -> None:
        """See `IHalfCloseableDescriptor.readConnectionLost`."""
        protocol = self.protocol
        # The same as Twisted, except that it asks the class first, which is much faster.
        if not _half_closes(protocol.__class__):
            super().readConnectionLost(reason)
            return
        self._at_end = True
        try:
            protocol.readConnectionLost()
        except BaseException:  # noqa: BLE001  (it ends this connection only)
            failure = Failure()
            log.err(failure)
            self.connectionLost(failure)

    def loseConnection(self) -> None:
        """Close the connection after everything is written; see `ITransport.loseConnection`."""
        if self._writeDisconnected and self.connected and not self.disconnecting and not self.TLS:
            # There is nothing to write. The same as Twisted, except that it reuses the failure.
            self.connectionLost(_DONE)
        else:
            super().loseConnection()

    def _stop_reading(self) -> None:
        # At the end of a connection the reactor has usually removed it from its tables already.
        if self.socket.fileno() in self.reactor._reads:
            super()._stop_reading()

    def _lost(self, reason: Failure) -> None:
        # The same as Twisted, except that it reuses the failures of the two common reasons.
        if self.reads is not None or self.writes is not None:
            self._close_limits()
        self.disconnected = 1
        self.connected = 0
        if self.producer is None:
            self._closed(reason)
        else:
            self._stop_producer(self._closed, reason)

    def _closed(self, reason: Failure) -> None:
        self._stop_reading()
        self.flushing = 0
        if self.waiting:
            self.stopWriting()
        self._closeSocket(reason.type is not error.ConnectionAborted)
        protocol = self.protocol
        del self.protocol, self.socket, self.fileno
        try:
            protocol.connectionLost(reason)
        except BaseException:
            self.logstr = f"{self._getLogPrefix(protocol)},{self.sessionno},{self.hostname}"
            raise


class _TCPClient(_Stream, _FlushedStream, tcp.Client):  # type: ignore[misc]
    """An outgoing TCP connection."""


class PlainTCPPort(AcceptMixin, tcp.Port):
    """A TCP port of any reactor."""

    transport = _TCPServer


class TCPPort(AcceptMixin, tcp.Port):
    """A TCP port of the fast reactor."""

    transport = FlushedTCPServer
    if native is not None:
        accepted_type = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

        def accept(self) -> tuple[int, Any]:
            """See `AcceptMixin.accept`."""
            return native.accept(self.socket.fileno())  # type: ignore[no-any-return]


class TCPConnector(tcp.Connector):
    """Makes connections with flushed transports."""

    def _makeTransport(self) -> Any:
        return _TCPClient(self.host, self.port, self.bindAddress, self, self.reactor)


# UNIX transports also pass file descriptors with recvmsg and sendmsg; so they differ from Twisted's only in flushing.
class _FlushedUNIXServer(FlushedMixin, _UNIXServer):
    """An accepted UNIX connection of the fast reactor."""


class _UNIXClient(FlushedMixin, unix.Client):
    """An outgoing UNIX connection."""


class PlainUNIXPort(AcceptMixin, unix.Port):
    """A UNIX port of any reactor."""

    transport = _UNIXServer


class UNIXPort(AcceptMixin, unix.Port):
    """A UNIX port of the fast reactor."""

    transport = _FlushedUNIXServer


class UNIXConnector(unix.Connector):
    """Makes connections with flushed transports."""

    def _makeTransport(self) -> Any:
        return _UNIXClient(self.address, self, self.reactor, self.checkPID)


def adopt_tcp_port(reactor: Any, descriptor: int, family: int, factory: Any) -> Any:
    """Listen on a bound socket, with `AcceptMixin` and transports with hooks where the reactor allows it."""
    # The fast reactor makes its own ports.
    if hasattr(reactor, "flushes") or not isinstance(reactor, PosixReactorBase):
        return reactor.adoptStreamPort(descriptor, family, factory)
    port = PlainTCPPort._fromListeningDescriptor(reactor, descriptor, family, factory)
    port.startListening()
    return port
