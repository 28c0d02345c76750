"""TLS on the socket of a connection, for TCP ports of the fast reactor.

OpenSSL reads and writes the socket itself. With `netsvc.reactor.tls`, which is for everything else, a message passes
two more buffers and another layer of protocols, which costs as much as all the rest.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from OpenSSL import SSL
from twisted.internet import main
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    IOpenSSLServerConnectionCreator,
    IPullProducer,
    ISSLTransport,
)
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.reactor.streams import ANSWERED, READING, FlushedTCPServer, TCPPort

__all__ = ["TLSServer", "encrypt", "has_contexts", "listen_tls"]

#: The longest content of a record (RFC 8446, section 5.1). OpenSSL returns one record at a time; with room for all of
#: it, nothing stays in OpenSSL, where epoll would not report it.
RECORD = 16384
#: What a record of TLS 1.3 adds to its content: a header, the type, and the authentication tag (section 5.2).
OVERHEAD = 22

_DONE = Failure(main.CONNECTION_DONE)
_LOST = Failure(main.CONNECTION_LOST)
_CLOSED = SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN

#: Makes the OpenSSL connection of an accepted socket.
Connect = Callable[[socket.socket], SSL.Connection]


@implementer(ISSLTransport, INegotiated)
class TLSServer(FlushedTCPServer):
    """An accepted TLS connection of the fast reactor. To its protocol it is what Twisted's TLS transport is.

    - What is written before the end of the handshake waits for it.
    - A close sends what was written, then close_notify, and closes the socket. It does not wait for the close_notify of
      the peer, which need not send one (RFC 8446, section 6.1).
    - close_notify of the peer is the end of its stream. A protocol that supports half-closes gets `readConnectionLost`
      and goes on; for any other, what was written is sent and the connection is closed, or reset if a pull producer has
      more to send: the client would take the data so far for complete.
    - The end of the TCP stream without close_notify is a lost connection to the protocol. To the observer it is the
      end that it is at the socket.
    """

    #: Of the same name as in Twisted's TLS.
    _handshakeDone = False
    #: Whether the peer has closed its side before we have closed ours.
    peer_first = False
    # Why the connection ends, for the protocol, if it is not what the observer is told.
    _reason: Failure | None = None
    # Whether reading waits for room to write, and writing for something to read.
    _needs_room = _needs_data = False
    # Whether the connection closes whatever its producer may have.
    _is_cut = False
    _tls: Any

    def __init__(self, connect: Connect, sock: Any, *args: Any) -> None:
        encrypted = connect(sock)
        super().__init__(sock, *args)
        self.TLS = True
        self._plain_socket = sock
        # Nothing but its closing reaches the socket past OpenSSL.
        self.socket = self._tls = encrypted
        # OpenSSL writes each ticket for a later session by itself. The first answer would wait until the client has
        # acknowledged them, for 40 ms.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        encrypted.set_accept_state()
        encrypted.set_app_data(self)

    def getHandle(self) -> Any:
        """Return the `OpenSSL.SSL.Connection`; None after the connection is closed."""
        return self._tls

    def getPeerCertificate(self) -> Any:
        """Return the certificate of the client; None if it has none."""
        return self._tls.get_peer_certificate()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """See `INegotiated`."""
        return None if self._tls is None else self._tls.get_alpn_proto_negotiated() or None

    @property
    def factory(self) -> Any:
        """What Twisted's TLS has here: callbacks of OpenSSL contexts look for the factory of the protocol in it."""
        served: Any = self.server.factory
        # A guarded one has it inside.
        return SimpleNamespace(wrappedFactory=served.factory if hasattr(type(served), "envelope") else served)

    def failVerification(self, reason: Failure) -> None:
        """Abort the connection; `reason` is what its protocol gets. See Twisted's `TLSMemoryBIOProtocol`."""
        self._reason = reason
        self.abortConnection()

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """Raise `RuntimeError`: the connection is encrypted."""
        raise RuntimeError("the connection is encrypted already")

    # Reading.

    def doRead(self) -> None:
        """Read one record, pass its content to the protocol, and send the answer; before that, shake hands."""
        if not self._handshakeDone and not self._shake_hands():
            return
        reads = self.reads
        try:
            if reads is not None:
                # A record cannot be read in parts; what is too much is taken from later records.
                reads.allow()
            data = self.socket.recv(RECORD)
        except (SSL.WantReadError, BlockingIOError):
            return
        except SSL.WantWriteError:
            self._wait_for_room()
            return
        except SSL.ZeroReturnError:
            self._peer_closed()
            return
        except SSL.Error:
            self._fail()
            return
        if reads is not None:
            reads.spend(len(data) + OVERHEAD)
        if self._needs_data:
            self._needs_data = False
            self.release_writing()
        if self.disconnecting:
            return
        if self.flushing or self.waiting:
            self.protocol.dataReceived(data)
            return
        self.flushing = READING
        try:
            self.protocol.dataReceived(data)
        except BaseException:
            # The connection is about to be lost, with everything written to it.
            self.flushing = 0
            raise
        if self.flushing >= ANSWERED:
            self._answer()
        elif self.flushing == READING:
            self.flushing = 0

    def _answer(self) -> None:
        """Send what the protocol has written in `dataReceived`."""
        if (
            self.flushing == ANSWERED
            and self.writes is None
            and self._tempDataLen <= RECORD
            and (self.producer is None or (self.streamingProducer and not self.producerPaused))
        ):
            written = self._tempDataBuffer
            # `doWrite` will get an error as well.
            with suppress(SSL.Error):
                if self.socket.send(written[0]) == self._tempDataLen:
                    written.clear()
                    self._tempDataLen = self.flushing = 0
                    return
        self.flush_answer()

    def _shake_hands(self) -> bool:
        """Go on with the handshake; return whether it is complete, and the connection open."""
        try:
            self.socket.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.WantWriteError:
            self._wait_for_room()
            return False
        except SSL.ZeroReturnError:
            self.connectionLost(_DONE)
            return False
        except SSL.Error:
            # OpenSSL has sent the alert.
            self._fail()
            return False
        self._handshakeDone = True
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        if not self.connected or self._aborting:
            return False
        # What was written before.
        self.startWriting()
        return True

    def _wait_for_room(self) -> None:
        """Read nothing until the kernel has room for what OpenSSL must send first."""
        self._needs_room = True
        self.hold_reading()
        self.wait_to_write()

    def _peer_closed(self) -> None:
        """Handle close_notify, the end of what the peer sends."""
        self.stopReading()
        is_known, self.peer_first = self.peer_first, self.peer_first or not self.disconnecting
        if IHalfCloseableProtocol.providedBy(self.protocol) and not self.disconnecting:
            # A protocol may resume reading later all the same.
            if not is_known:
                self.readConnectionLost(_DONE)
            return
        producer: Any = self.producer
        if producer is not None and (not self.streamingProducer or IPullProducer.providedBy(producer)):
            self.abortConnection()
            return
        # What was written is still sent; a push producer may be done, or not.
        self._is_cut = self._writeDisconnected = True
        self.producerPaused = False
        self.disconnecting = 1
        self.startWriting()

    def _fail(self) -> None:
        """Lose the connection to the error that is being handled."""
        failure = Failure()
        error: Any = failure.value
        if isinstance(error, SSL.SysCallError) and error.args[0] != -1:
            self.connectionLost(_LOST)
            return
        # Without close_notify, the stream may have been cut short by somebody else (RFC 8446, section 6.1).
        is_end = isinstance(error, SSL.SysCallError) or not error.args or not error.args[0]
        self._reason = self._reason or (_LOST if is_end else failure)
        self.connectionLost(_DONE)

    # Writing.

    def startWriting(self) -> None:
        """See `FlushedMixin`. Before the end of the handshake, nothing is written."""
        if self._handshakeDone:
            super().startWriting()

    def write(self, data: bytes) -> None:
        """Write bytes; see `ITransport.write`. After `loseConnection` only a producer can."""
        if self.disconnecting and self.producer is None:
            return
        if type(data) is not bytes:
            FileDescriptor.write(self, data)
        elif data and self.connected and not self._writeDisconnected:
            self._tempDataBuffer.append(data)
            self._tempDataLen += len(data)
            if self.producer is not None and len(self.dataBuffer) + self._tempDataLen > self.bufferSize:
                self._maybePauseProducer()
            if self.flushing == READING:
                self.flushing = ANSWERED
            else:
                self.startWriting()

    def writeSequence(self, iovec: Any) -> None:
        """Write a sequence of bytes; see `ITransport.writeSequence`."""
        self.write(b"".join(iovec))

    def write_at_once(self, data: bytes) -> None:
        """Write as `write` does, and send it now if that is safe; see `netsvc.reactor.streams`."""
        if (
            self.flushing
            or self.waiting
            or self.writes is not None
            or self.reactor.ready > 1
            or not self._handshakeDone
            or not self.connected
            or self._writeDisconnected
            or self.disconnecting
            or len(data) > RECORD
        ):
            self.write(data)
            return
        sent = 0
        # `doWrite` will get an error as well.
        with suppress(SSL.Error):
            sent = self.socket.send(data)
        if sent != len(data):
            self.write(data[sent:])

    def doWrite(self) -> Any:
        """Send the written data; see `IWriteDescriptor.doWrite`."""
        if self._needs_room:
            return self._read_on()
        if (
            self.producer is not None
            and not self.streamingProducer
            and not self._tempDataBuffer
            and not self.dataBuffer
        ):
            self._pull()
            return None
        return FileDescriptor.doWrite(self)

    def _read_on(self) -> Any:
        """Go on reading: the kernel has room."""
        self._needs_room = False
        self.stopWriting()
        is_wanted = self._reads_later
        self.release_reading()
        if is_wanted:
            self.doRead()
        if self.connected and not self._aborting:
            self.startWriting()
        return None

    def writeSomeData(self, data: Any) -> Any:
        """Write as many records as the kernel takes; see `FileDescriptor.writeSomeData`."""
        size = min(len(data), self.SEND_LIMIT)
        writes = self.writes
        sent = 0
        view = memoryview(data)
        try:
            while sent < size:
                # A record that the kernel did not take is written again, and must not be shorter then: it begins at the
                # same place, and more may have been added since. So no limit shortens it either.
                if writes is not None:
                    writes.allow()
                count = self.socket.send(view[sent : min(sent + RECORD, size)])
                sent += count
                if writes is not None:
                    writes.spend(count + OVERHEAD)
        except (SSL.WantWriteError, BlockingIOError):
            pass
        except SSL.WantReadError:
            # A renegotiation (RFC 5246, section 7.4.1.1).
            self._needs_data = True
            self.hold_writing()
        except SSL.SysCallError:
            return main.CONNECTION_LOST
        except SSL.Error:
            self._reason = Failure()
            return main.CONNECTION_LOST
        return sent

    def send_now(self, data: Any, flags: int = 0) -> int:
        """Raise `OSError`: what is not written in order cannot be encrypted."""
        raise OSError("the connection is encrypted")

    def send_file(self, descriptor: int, offset: int, size: int) -> int:
        """Raise `OSError`: the kernel does not encrypt files."""
        raise OSError("the connection is encrypted")

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See `IConsumer.registerProducer`."""
        FileDescriptor.registerProducer(self, producer, streaming)

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        FileDescriptor.unregisterProducer(self)

    # Closing.

    def loseConnection(self) -> None:
        """Close the connection after everything is written; abort it if it has not begun, as Twisted does."""
        if not self.connected or self.disconnecting:
            return
        if self._writeDisconnected:
            self.connectionLost(_DONE)
            return
        self.disconnecting = 1
        if not self._handshakeDone:
            if not self._tempDataBuffer:
                self.abortConnection()
            return
        if self.producer is None:
            self.stopReading()
        self.startWriting()

    def _postLoseConnection(self) -> Any:
        if self.producer is not None and not self._is_cut:
            # It may have more; `unregisterProducer` closes then.
            return None
        return main.CONNECTION_DONE if self._send_close_notify() else None

    def _send_close_notify(self) -> bool:
        """Send close_notify; if the kernel has no room, return False, and `doWrite` is called again."""
        try:
            self.socket.shutdown()
        except SSL.WantWriteError:
            self.wait_to_write()
            return False
        except SSL.Error:
            # The peer is gone.
            pass
        return True

    def _closeWriteConnection(self) -> None:
        # The socket stays open in both directions: TLS has more to send, such as a new key that the peer asks for.
        if not self._send_close_notify():
            self._writeDisconnected = False
        elif IHalfCloseableProtocol.providedBy(self.protocol):
            try:
                self.protocol.writeConnectionLost()
            except BaseException:  # noqa: BLE001  (it ends this connection only)
                failure = Failure()
                log.err(failure)
                self.connectionLost(failure)

    def keep_socket(self) -> Any:
        """See `Hooks.keep_socket`."""
        super().keep_socket()
        return self._plain_socket

    def _lost(self, reason: Failure) -> None:
        super()._lost(self._reason or reason)

    def _closed(self, reason: Failure) -> None:
        # Whoever has the handle must not write to a descriptor that is another connection's by then.
        self._tls.set_shutdown(_CLOSED)
        self.socket = self._plain_socket
        try:
            super()._closed(reason)
        finally:
            # It refers back to this.
            self._tls = None


def encrypt(port: TCPPort, connect: Connect | None) -> None:
    """Make a port encrypt the connections that it accepts from now on; with None, not any more."""
    if connect is None:
        vars(port).pop("transport", None)
    else:
        vars(port)["transport"] = partial(TLSServer, connect)


class TLSPort(TCPPort):
    """A port of `IReactorSSL.listenSSL`."""

    _type = "TLS"

    def _getLogPrefix(self, transport: Any) -> str:
        return f"{super()._getLogPrefix(transport)} (TLS)"


def has_contexts(contexts: Any) -> bool:
    """Return whether the connections of a context factory can be made from its contexts.

    Others make connections themselves, which read and write memory.
    """
    return type(contexts) is CertificateOptions or not IOpenSSLServerConnectionCreator.providedBy(contexts)


def listen_tls(  # noqa: PLR0917  (as `IReactorSSL.listenSSL`, and a reactor)
    reactor: Any, port: int, factory: Any, contexts: Any, backlog: int, interface: str
) -> Any:
    """Listen for TLS connections, each with the context that `contexts` returns; see `IOpenSSLContextFactory`."""
    # For what Twisted refuses, and warns of.
    TLSMemoryBIOFactory(contexts, False, factory, reactor)
    listening: Any = reactor.find_port("stream", (interface, port), factory)
    is_found = listening is not None
    if not is_found:
        listening = TLSPort(port, factory, backlog, interface, reactor)
    encrypt(listening, lambda sock: SSL.Connection(contexts.getContext(), sock))
    if not is_found:
        listening.startListening()
    return listening
