"""The fast reactor: Twisted's epoll reactor with transports that it flushes. `twistd --reactor netsvc`.

It knows nothing of services; any Twisted program runs on it. See `netsvc.transports` for what is fast, and why.
"""

from __future__ import annotations

import socket
from select import EPOLLHUP, EPOLLIN
from typing import Any

from twisted.internet import error, main
from twisted.internet.epollreactor import EPollReactor
from twisted.python import log
from twisted.python.failure import Failure

from netsvc.steady import seconds
from netsvc.transports import BEING_FLUSHED, FlushedMixin, TCPConnector, TCPPort, UNIXConnector, UNIXPort
from netsvc.udp import UDPPort

__all__ = ["NetsvcReactor", "install"]

#: What epoll tells of a stream that may be read, and of one that both sides have ended: there may be something left.
_READABLE = frozenset((EPOLLIN, EPOLLIN | EPOLLHUP))


class NetsvcReactor(EPollReactor):
    """An epoll reactor that dispatches to its own transports directly, and flushes them once a turn."""

    def __init__(self) -> None:
        #: The transports that have something to write.
        self.flushes: list[Any] = []
        #: How many descriptors the last poll reported: how much there is to do in this turn.
        self.ready = 0
        #: What a selectable has raised, while it is told that it is lost. Who logs it better takes it away.
        self.fault: BaseException | None = None
        super().__init__()

    def listenTCP(self, port: Any, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Listen for TCP connections; see `IReactorTCP`."""
        listening = TCPPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def connectTCP(self, host: Any, port: Any, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        """Make a TCP connection; see `IReactorTCP`."""
        connector = TCPConnector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> Any:
        """Listen for UNIX connections; see `IReactorUNIX`."""
        listening = UNIXPort(address, factory, backlog, mode, self, wantPID)
        listening.startListening()
        return listening

    def connectUNIX(self, address: Any, factory: Any, timeout: float = 30, checkPID: bool = False) -> Any:
        """Make a UNIX connection; see `IReactorUNIX`."""
        connector = UNIXConnector(address, factory, timeout, self, checkPID)
        connector.connect()
        return connector

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Listen on a socket that somebody else bound; see `IReactorSocket`."""
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            listening: Any = UNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            listening = TCPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        listening.startListening()
        return listening

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Serve a connection that somebody else accepted; see `IReactorSocket`."""
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            return UNIXPort.transport._fromConnectedSocket(fileDescriptor, factory, self)
        return TCPPort.transport._fromConnectedSocket(fileDescriptor, addressFamily, factory, self)

    def listenUDP(self, port: Any, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> Any:
        """Take datagrams; see `IReactorUDP`."""
        listening = UDPPort(port, protocol, interface, maxPacketSize, self)
        listening.startListening()
        return listening

    def adoptDatagramPort(
        self, fileDescriptor: int, addressFamily: int, protocol: Any, maxPacketSize: int = 8192
    ) -> Any:
        """Take datagrams on a socket that somebody else bound; see `IReactorSocket`."""
        if addressFamily not in (socket.AF_INET, socket.AF_INET6):
            raise error.UnsupportedAddressFamily(addressFamily)
        listening = UDPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, protocol, maxPacketSize)
        listening.startListening()
        return listening

    #: All that waits goes by it.
    seconds = staticmethod(seconds)

    def getWriters(self) -> list[Any]:
        """List who waits to write; a transport that is to be flushed does."""
        return [*super().getWriters(), *(transport for transport in self.flushes if transport.flushing)]

    def removeAll(self) -> list[Any]:
        """Forget all descriptors, and list them."""
        pending = [transport for transport in self.flushes if transport.flushing]
        self.flushes.clear()
        removed = super().removeAll()
        return [*removed, *(transport for transport in pending if transport not in removed)]

    def doPoll(self, timeout: float | None) -> None:
        """Flush, wait for events at most `timeout` seconds, and dispatch them."""
        if self.flushes:
            # What delayed calls wrote; what comes of the events below is flushed after them.
            self._flush_all()
            # `timeout` is out of date: who lost a connection may have asked to be called soon, or to stop.
            timeout = 0
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        except InterruptedError:
            return
        self.ready = len(events)
        selectables = self._selectables
        for descriptor, event in events:
            selectable: Any = selectables.get(descriptor)
            if event in _READABLE and isinstance(selectable, FlushedMixin):
                why = None
                try:
                    why = selectable.doRead()
                except BaseException as failure:  # noqa: BLE001
                    # As in Twisted, an exception of the protocol closes its connection.
                    self._lose(selectable, failure, True)
                if why:
                    self._disconnectSelectable(selectable, why, True)
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)
        if self.flushes:
            self._flush_all()

    doIteration = doPoll

    def _lose(self, selectable: Any, fault: BaseException, is_read: bool) -> None:
        """Disconnect what has raised something, and log that if nobody else does."""
        self.fault = fault
        self._disconnectSelectable(selectable, fault, is_read)
        if self.fault is not None:
            log.err(Failure(fault), f"{selectable.logPrefix()} has failed")
            self.fault = None

    def _disconnectSelectable(self, selectable: Any, why: Any, isRead: bool, *faildict: Any) -> None:
        # Others are yet to be told what has come for them, and to be flushed.
        try:
            super()._disconnectSelectable(selectable, why, isRead, *faildict)
        except BaseException:  # noqa: BLE001
            log.err(None, f"{selectable.logPrefix()} has failed at its end")

    def _flush_all(self) -> None:
        flushes, self.flushes = self.flushes, []
        for transport in flushes:
            # One that was flushed, or lost its connection, since it was put on the list is still on it.
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
                # It has not called stopWriting: the kernel did not take all.
                transport.wait_to_write()


def install() -> None:
    """Make this the process's reactor."""
    main.installReactor(NetsvcReactor())
