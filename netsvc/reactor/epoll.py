"""The fast reactor: Twisted's epoll reactor with transports that it flushes. `twistd --reactor netsvc`.

It is independent of services; any Twisted program runs on it. See `netsvc.reactor.streams` for what is faster and why.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from select import EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any

from twisted.internet import error, main
from twisted.internet.epollreactor import EPollReactor
from twisted.python import log
from twisted.python.failure import Failure

from netsvc.reactor.accept import BACKLOG, AcceptMixin
from netsvc.reactor.clock import seconds
from netsvc.reactor.datagrams import UDPPort
from netsvc.reactor.streams import BEING_FLUSHED, FlushedMixin, TCPConnector, TCPPort, UNIXConnector, UNIXPort

__all__ = ["NetsvcReactor", "install"]

#: Events of a readable stream, and of one that both sides have closed, which may have data left.
_READABLE = frozenset((EPOLLIN, EPOLLIN | EPOLLHUP))
#: The failures for the two common ends of a connection.
_ENDS = {type(each): Failure(each) for each in (main.CONNECTION_DONE, main.CONNECTION_LOST)}
#: Transports that are read without a logging context for each call.
_READ_HERE = (FlushedMixin, AcceptMixin)


class NetsvcReactor(EPollReactor):
    """An epoll reactor that calls its own transports directly, and flushes them once per iteration."""

    def __init__(self) -> None:
        #: The transports with data to write.
        self.flushes: list[Any] = []
        #: How many descriptors the last poll reported, a measure of the work of this iteration.
        self.ready = 0
        #: An exception of a selectable, while its loss is reported. An observer that logs it resets this to None.
        self.fault: BaseException | None = None
        #: Called for each port to be opened with `stream` or `datagram`, an interface and port or a path, and the
        #: protocol or factory; may return an open port to use instead of a new one.
        self.find_port: Callable[[Any, Any, Any], Any] = lambda kind, place, protocol: None
        super().__init__()

    def listenTCP(self, port: Any, factory: Any, backlog: int = BACKLOG, interface: str = "") -> Any:
        """Listen for TCP connections; see `IReactorTCP`."""
        if found := self.find_port("stream", (interface, port), factory):
            return found
        listening = TCPPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def connectTCP(self, host: Any, port: Any, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        """Make a TCP connection; see `IReactorTCP`."""
        connector = TCPConnector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenSSL(
        self, port: Any, factory: Any, contextFactory: Any, backlog: int = BACKLOG, interface: str = ""
    ) -> Any:
        """Listen for TLS connections; see `IReactorSSL`."""
        # Imported late, as it loads OpenSSL.
        from netsvc.reactor.tls_socket import has_contexts, listen_tls

        if has_contexts(contextFactory):
            return listen_tls(self, port, factory, contextFactory, backlog, interface)
        return super().listenSSL(port, factory, contextFactory, backlog, interface)

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = BACKLOG, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        """Listen for UNIX connections; see `IReactorUNIX`."""
        if found := self.find_port("stream", address, factory):
            return found
        listening = UNIXPort(address, factory, backlog, mode, self, wantPID)
        listening.startListening()
        return listening

    def connectUNIX(self, address: Any, factory: Any, timeout: float = 30, checkPID: bool = False) -> Any:
        """Make a UNIX connection; see `IReactorUNIX`."""
        connector = UNIXConnector(address, factory, timeout, self, checkPID)
        connector.connect()
        return connector

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Listen on a socket that is already bound; see `IReactorSocket`."""
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            listening: Any = UNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            listening = TCPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        listening.startListening()
        return listening

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Serve a connection that is already accepted; see `IReactorSocket`."""
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            return UNIXPort.transport._fromConnectedSocket(fileDescriptor, factory, self)
        return TCPPort.transport._fromConnectedSocket(fileDescriptor, addressFamily, factory, self)

    def listenUDP(self, port: Any, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> Any:
        """Receive datagrams; see `IReactorUDP`."""
        if found := self.find_port("datagram", (interface, port), protocol):
            return found
        listening = UDPPort(port, protocol, interface, maxPacketSize, self)
        listening.startListening()
        return listening

    def adoptDatagramPort(
        self, fileDescriptor: int, addressFamily: int, protocol: Any, maxPacketSize: int = 8192
    ) -> Any:
        """Receive datagrams on a socket that is already bound; see `IReactorSocket`."""
        if addressFamily not in (socket.AF_INET, socket.AF_INET6):
            raise error.UnsupportedAddressFamily(addressFamily)
        listening = UDPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, protocol, maxPacketSize)
        listening.startListening()
        return listening

    #: The clock of all delayed calls.
    seconds = staticmethod(seconds)

    def addReader(self, reader: Any) -> None:
        """Watch for data to read; see `IReactorFDSet`."""
        descriptor = reader.fileno()
        if descriptor in self._selectables:
            super().addReader(reader)
            return
        # The same as Twisted for a new descriptor, as most are.
        try:
            self._poller.register(descriptor, EPOLLIN)
        except PermissionError:
            # A file, which epoll(7) does not support.
            super().addReader(reader)
            return
        self._reads.add(descriptor)
        self._selectables[descriptor] = reader

    def removeReader(self, reader: Any) -> None:
        """Stop watching for data to read; see `IReactorFDSet`."""
        descriptor = reader.fileno()
        if descriptor not in self._reads or descriptor in self._writes:
            super().removeReader(reader)
            return
        # The same as Twisted for a descriptor that is watched for nothing else.
        del self._selectables[descriptor]
        self._poller.unregister(descriptor)
        self._reads.remove(descriptor)

    def add_edges(self, selectable: Any) -> None:
        """Call `doRead` and `doWrite` of a selectable once for each change of its socket, not as long as it is ready.

        A socket that is shut down for writing is always ready to write; the acknowledgement of its last byte and of
        the end of the stream is a change. For more after a `doRead` that has not read everything, call it again.
        """
        descriptor = selectable.fileno()
        try:
            self._poller.register(descriptor, EPOLLIN | EPOLLOUT | EPOLLET)
        except FileExistsError:
            self._poller.modify(descriptor, EPOLLIN | EPOLLOUT | EPOLLET)
        self._selectables[descriptor] = selectable

    def remove_edges(self, selectable: Any) -> None:
        """Undo `add_edges`; before the selectable closes its socket."""
        descriptor = selectable.fileno()
        self._poller.unregister(descriptor)
        del self._selectables[descriptor]

    def getWriters(self) -> list[Any]:
        """List the descriptors that wait to write, including transports to be flushed."""
        return [*super().getWriters(), *(transport for transport in self.flushes if transport.flushing)]

    def removeAll(self) -> list[Any]:
        """Remove all descriptors, and return them."""
        pending = [transport for transport in self.flushes if transport.flushing]
        self.flushes.clear()
        removed = super().removeAll()
        return [*removed, *(transport for transport in pending if transport not in removed)]

    def doPoll(self, timeout: float | None) -> None:
        """Flush, wait for events at most `timeout` seconds, and dispatch them."""
        if self.flushes:
            # Flush what delayed calls wrote. What the events below write is flushed after them.
            self._flush_all()
            # `timeout` is out of date: a lost connection may have made a delayed call, or stopped the reactor.
            timeout = 0
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        except InterruptedError:
            return
        self.ready = len(events)
        selectables = self._selectables
        for descriptor, event in events:
            selectable: Any = selectables.get(descriptor)
            if (event == EPOLLIN or event in _READABLE) and (
                isinstance(selectable, _READ_HERE) or selectable is self.waker
            ):
                why = None
                try:
                    why = selectable.doRead()
                except BaseException as failure:  # noqa: BLE001
                    # As in Twisted, an exception in the protocol closes its connection.
                    self._lose(selectable, failure, True)
                if why:
                    self._disconnectSelectable(selectable, why, True)
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)
        if self.flushes:
            self._flush_all()

    doIteration = doPoll

    def _lose(self, selectable: Any, fault: BaseException, is_read: bool) -> None:
        """Disconnect a selectable that raised an exception, and log that unless an observer does."""
        self.fault = fault
        name = selectable.logPrefix()
        self._disconnectSelectable(selectable, fault, is_read)
        if self.fault is not None:
            log.err(Failure(fault), f"{name} failed")
            self.fault = None

    def _disconnectSelectable(self, selectable: Any, why: Any, isRead: bool, *faildict: Any) -> None:
        # An exception must not keep other events from being dispatched, and other transports from being flushed.
        ended = _ENDS.get(why.__class__) if isinstance(selectable, FlushedMixin) else None
        try:
            if ended is None:
                super()._disconnectSelectable(selectable, why, isRead, *faildict)
            elif isRead and ended.type is error.ConnectionDone:
                self.removeReader(selectable)
                selectable.readConnectionLost(ended)
            else:
                # The same as Twisted, except that such a transport removes itself from the reactor's tables.
                selectable.connectionLost(ended)
        except BaseException:  # noqa: BLE001
            log.err(None, f"{selectable.logPrefix()} failed in connectionLost")

    def _flush_all(self) -> None:
        flushes, self.flushes = self.flushes, []
        for transport in flushes:
            # A transport stays on the list although it was flushed or lost its connection meanwhile.
            if not transport.flushing:
                continue
            transport.flushing = BEING_FLUSHED
            why = None
            try:
                why = transport.doWrite()
            except BaseException as failure:  # noqa: BLE001
                self._lose(transport, failure, False)
                continue
            if why:
                self._disconnectSelectable(transport, why, False)
            elif transport.flushing == BEING_FLUSHED:
                # It has not called stopWriting: the kernel did not take everything.
                transport.wait_to_write()


def install() -> None:
    """Install this reactor for the process."""
    main.installReactor(NetsvcReactor())
