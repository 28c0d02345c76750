"""Stream transports that spare the event loop what it need not do. For `netsvc.reactor`.

They are Twisted's own, with three things done in another place:

- To write is not to wait for EPOLLOUT. A transport with something to write is flushed when its protocol returns
  from `dataReceived`; one that was written to from elsewhere before the loop waits again. Only for what the kernel
  does not take is EPOLLOUT waited for. So what was written in one turn leaves in one system call; and nothing is
  sent from inside `write`, so that no connection can be lost there.
- The reactor calls `doRead` itself, without a logging context for every call.
- Nothing is copied when there is one thing to send, and the kernel takes it.

Everything else, producers, half-close, aborting, TLS, is Twisted's code, called in Twisted's order.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import error, main, tcp, unix
from twisted.python.failure import Failure

from netsvc.accepting import Acceptor

__all__ = ["BEING_FLUSHED", "FlushedMixin", "TCPConnector", "TCPPort", "UNIXConnector", "UNIXPort"]

# What `FlushedMixin.flushing` may be, beside 0.

#: On the reactor's list, which is gone through before the loop waits again.
QUEUED = 1
#: `doWrite` is being called by the reactor, and not on EPOLLOUT.
BEING_FLUSHED = 2
#: The protocol is in `dataReceived`, and has written nothing yet; has written once, and asked for nothing else; or
#: there is something else to do.
READING = 3
ANSWERED = 4
ASKED = 5


class FlushedMixin:
    """Makes a transport one that the reactor flushes, and that waits for EPOLLOUT only when it must."""

    reactor: Any
    connected: Any
    doRead: Any
    flushing = 0
    #: Whether `doWrite` is to be called on EPOLLOUT.
    waiting = False

    def startWriting(self) -> None:
        """Have `doWrite` called: soon; or while the connection is not yet made, when it is."""
        if self.waiting:
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
        """Have `doWrite` called no more."""
        self.flushing = 0
        if self.waiting:
            self.waiting = False
            self.reactor.removeWriter(self)

    def wait_to_write(self) -> None:
        """Have `doWrite` called when the kernel has room."""
        self.flushing = 0
        if not self.waiting:
            self.waiting = True
            self.reactor.addWriter(self)


class _FlushedStream(FlushedMixin):
    """What TCP servers and clients share."""

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Read for every message: Python finds what an instance has sooner than what its class has.
        self.flushing = 0
        self.waiting = False
        self.TLS = False
        self.producer = None
        self.streamingProducer = self.producerPaused = False
        self.dataBuffer = b""
        self.disconnecting = 0
        self._writeDisconnecting = self._writeDisconnected = False
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

    def doRead(self) -> Any:
        """Read once, give it to the protocol, and send what it answers."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        if self.flushing or self.waiting:
            self.protocol.dataReceived(data)
            return None
        self.flushing = READING
        try:
            self.protocol.dataReceived(data)
        except BaseException:
            # The connection is about to be lost, and what was written with it.
            self.flushing = 0
            raise
        if self.flushing == ANSWERED and (
            self.producer is None or (self.streamingProducer and not self.producerPaused)
        ):
            # With as little as this takes: it is what most protocols do most of the time.
            written = self._tempDataBuffer
            try:
                sent = self.socket.send(written[0])
            except OSError:
                # `doWrite` will see it as well.
                sent = 0
            if sent == self._tempDataLen:
                written.clear()
                self._tempDataLen = self.flushing = 0
                return None
            self.dataBuffer = written.pop()
            self._tempDataLen = 0
            self.offset = sent
        if self.flushing >= ANSWERED:
            self.flushing = BEING_FLUSHED
            failed = self.doWrite()
            if failed:
                # To return it would be to say that the reading has failed.
                self.reactor._disconnectSelectable(self, failed, False)
            elif self.flushing == BEING_FLUSHED:
                self.wait_to_write()
        elif self.flushing == READING:
            self.flushing = 0
        return None

    def doWrite(self) -> Any:
        """Send what there is; see `IWriteDescriptor.doWrite`."""
        written = self._tempDataBuffer
        if (
            not written
            or self.dataBuffer
            or (self.producer is not None and (self.producerPaused or not self.streamingProducer))
            or self.disconnecting
            or self._writeDisconnecting
            or self._tempDataLen > self.SEND_LIMIT
        ):
            # Not as simple as that: Twisted's own code decides what follows.
            return super().doWrite()  # type: ignore[misc]
        data = written[0] if len(written) == 1 else b"".join(written)
        try:
            sent: Any = self.socket.send(data)
        except OSError:
            # Tried again there, where it is decided what it means.
            sent = self.writeSomeData(data)
            if sent.__class__ is not int:
                return sent
        written.clear()
        self._tempDataLen = 0
        if sent == len(data):
            self.flushing = 0
            if self.waiting:
                self.stopWriting()
        else:
            self.dataBuffer = data
            self.offset = sent
        return None

    def _closeSocket(self, orderly: bool) -> None:
        if orderly and self._writeDisconnected:
            # The end is out: there is nothing to shut down.
            self.socket.close()
        else:
            super()._closeSocket(orderly)  # type: ignore[misc]


class _TCPServer(_FlushedStream, tcp.Server):
    """An accepted TCP connection."""

    def connectionLost(self, reason: Failure) -> None:
        """Close the connection; see `IFileDescriptor.connectionLost`."""
        # What Twisted does, but for what its reactor has done already: it has taken us out of its tables, and its
        # two common reasons are always the same.
        if not hasattr(self, "socket"):
            return
        self.disconnected = 1
        self.connected = 0
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        if self.socket.fileno() in self.reactor._selectables:
            self.stopReading()
        self.stopWriting()
        self._closeSocket(reason.type is not error.ConnectionAborted)
        protocol = self.protocol
        del self.protocol, self.socket, self.fileno
        protocol.connectionLost(reason)


class _TCPClient(_FlushedStream, tcp.Client):
    """An outgoing TCP connection."""


class TCPPort(tcp.Port):
    """Accepts flushed connections."""

    transport = _TCPServer

    def startListening(self) -> None:
        """Open the port; see `IListeningPort.startListening`."""
        super().startListening()
        # Its descriptor stays the same.
        self.socket = Acceptor(self.socket)
        self.fileno = self.socket.fileno  # type: ignore[method-assign]


class TCPConnector(tcp.Connector):
    """Makes flushed connections."""

    def _makeTransport(self) -> Any:
        return _TCPClient(self.host, self.port, self.bindAddress, self, self.reactor)


# A UNIX transport reads and writes file descriptors as well, with recvmsg and sendmsg, so only when it is flushed is
# another than Twisted's.
class _UNIXServer(FlushedMixin, unix.Server):
    """An accepted UNIX connection."""

    _sendmsgQueue: list[Any]

    def writeSomeData(self, data: Any) -> Any:
        """Send; see `Connection.writeSomeData`. To send nothing would be a failure where the peer is gone."""
        return super().writeSomeData(data) if data or self._sendmsgQueue else 0


class _UNIXClient(FlushedMixin, unix.Client):
    """An outgoing UNIX connection."""


class UNIXPort(unix.Port):
    """Accepts flushed connections."""

    transport = _UNIXServer


class UNIXConnector(unix.Connector):
    """Makes flushed connections."""

    def _makeTransport(self) -> Any:
        return _UNIXClient(self.address, self, self.reactor, self.checkPID)
