"""Datagram ports that read in bounded batches, answer at once, and drop what the system will not take.

For `netsvc.reactor`, and for netsvc's own sockets on every reactor. They are Twisted's own ports otherwise.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from contextlib import suppress
from typing import Any

from twisted.internet import udp, unix
from twisted.logger import Logger

from netsvc.text import escape, host_port

__all__ = ["DATAGRAMS_A_TURN", "LONGEST_DATAGRAM", "ONE_COUNTED", "ONE_DATAGRAM", "UDPPort", "UNIXDatagramPort"]

#: Bytes. No UDP datagram is longer than 65,507; Twisted's own 8,192 would cut one in silence.
LONGEST_DATAGRAM = 65535
#: Bytes. Linux lets a UNIX socket send what fits its send buffer, 212,992 bytes unless it asks for more.
LONGEST_UNIX_DATAGRAM = 212992
#: Datagrams that a port reads before it is the turn of others. Twisted counts bytes (256 KiB): empty datagrams
#: are none, and a flood of them would keep the reactor for as long as it lasts.
DATAGRAMS_A_TURN = 512
#: Bytes that the kernel is asked to keep of what comes in a burst; it gives net.core.rmem_max at most, except to root.
BURST = 4 * 1024 * 1024
#: Reads that empty a buffer of `BURST` bytes: the kernel counts 768 for the smallest datagram, and doubles what it
#: is asked for.
TURNS_A_BURST = 2 * BURST // 768 // DATAGRAMS_A_TURN + 1

#: A datagram, in a number that counts datagrams, and below this value their bytes.
ONE_DATAGRAM = 1 << 22

#: The same for as long as a session lasts: no peer sends four million gigabytes.
ONE_COUNTED = 1 << 52

#: The socket is no more, or never was one.
_CLOSED = frozenset((errno.EBADF, errno.ENOTSOCK))
#: What has become of datagrams that were sent: the system tells it at the next call, whatever that is for. And that
#: there is no memory now.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EINTR", "ECONNREFUSED", "ECONNRESET", "EMSGSIZE", "EPERM", "EACCES", "EPROTO", "ENOPROTOOPT"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ETIMEDOUT", "ENOBUFS", "ENOMEM"),
    )
    if hasattr(errno, name)
)
#: Why a datagram is not sent that might be at another time, or to somebody else: a full buffer, a firewall, no route.
_DROPPED = _PASSING - {errno.EINTR, errno.ECONNREFUSED, errno.EMSGSIZE, errno.EACCES}

#: Seconds from one line about what a protocol raised to the next.
_FAULT_INTERVAL = 1.0
#: And about what the system cannot do.
_TROUBLE_INTERVAL = 60.0

#: What no address is.
_NOBODY = object()

_log = Logger(namespace="netsvc.udp")


class _BatchMixin:
    """Reads datagrams: what UDP and UNIX ports share."""

    socket: Any
    protocol: Any
    connected: Any
    getHost: Any
    maxPacketSize: int
    reactor: Any
    #: Answers that the system had no room for.
    dropped = 0
    #: Where the last datagram came from: as the protocol was told, and as the system says it.
    _peer: Any = _NOBODY
    _whole_peer: Any = None
    _cuts_address = False
    #: The limits of its peers, a `netsvc.guard.sessions.Sessions`, if there are any.
    sessions: Any = None
    #: That of the last datagram, and how many bytes of answer the datagram allows beyond what its session may be sent.
    _session: Any = None
    _room: float = math.inf
    #: Datagrams at which the protocol has failed since that was logged, and when it was.
    _faults = 0
    _told_of_fault = -math.inf
    #: When it was logged last that the system gives no datagrams.
    _told_of_trouble = -math.inf

    def doRead(self) -> None:
        """Read a batch."""
        self.read_batch()

    def read_batch(self) -> bool:
        """Read `DATAGRAMS_A_TURN` datagrams at most; return whether there may be more."""
        if self.sessions is not None:
            return self._read_limited()
        receive, protocol, size, cuts = self.socket.recvfrom, self.protocol, self.maxPacketSize, self._cuts_address
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, peer = receive(size)
            except OSError as error:
                self._not_read(error)
                return False
            self._whole_peer = peer
            # Of an IPv6 address host and port alone, as Twisted has it.
            self._peer = peer = peer[:2] if cuts else peer
            try:
                protocol.datagramReceived(data, peer)
            except BaseException:  # noqa: BLE001  (one datagram's fault must not stop the port)
                _log.failure("a datagram could not be taken")
            # The protocol may have closed the port.
            if not self.connected:
                return False
        return True

    def _read_limited(self) -> bool:
        sessions = self.sessions
        try:
            return self._read_of_sessions()
        finally:
            if sessions.paced:
                self._keep_room()
                sessions.end_batch()

    def _read_of_sessions(self) -> bool:
        receive, protocol, size, cuts = self.socket.recvfrom, self.protocol, self.maxPacketSize, self._cuts_address
        sessions = self.sessions
        free, paced, plain, known = sessions.free, sessions.paced, sessions.plain, sessions.young.get
        one, counted = ONE_DATAGRAM, ONE_COUNTED
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, peer = receive(size)
            except OSError as error:
                self._not_read(error)
                return False
            self._whole_peer = peer
            self._peer = peer = peer[:2] if cuts else peer
            session = known(peer)
            if session is None:
                session = sessions.find(peer)
                # There may be another generation now.
                known = sessions.young.get
                if session is None:
                    continue
            length = len(data)
            session.received += counted + length
            if not free:
                if self._room:
                    # The last one's answer was shorter, or there was none.
                    self._keep_room()
                # What a protocol sends most is one answer, and that no longer than what it answers.
                room: float = length
                if paced:
                    used = session.used + one + length
                    if used <= session.granted:
                        session.used = used
                    elif not sessions.may_read(session, length):
                        continue
                    elif session.granted < 0:
                        room = sessions.room(session, length)
                elif not plain:
                    room = sessions.room(session, length)
                self._room = room
            self._session = session
            try:
                protocol.datagramReceived(data, peer)
            except BaseException:  # noqa: BLE001  (as above)
                self._note_fault()
            if not self.connected:
                return False
        return True

    def _note_fault(self) -> None:
        """Log what the protocol has raised, once a second: who found out how can send thousands of such datagrams."""
        self._faults += 1
        self.sessions.gate.tally.counts.errors += 1
        now = self.reactor.seconds()
        # The system's clock may be set back.
        if not 0 <= now - self._told_of_fault < _FAULT_INTERVAL:
            label, peer = self.sessions.gate.label, escape(_place(self._peer))
            more = f" ({self._faults - 1} more before it)" if self._faults > 1 else ""
            _log.failure("{label} {peer} failed{more}", label=label, peer=peer, more=more)
            self._faults, self._told_of_fault = 0, now

    def _keep_room(self) -> None:
        """Leave what the last datagram was not answered with to later answers."""
        # Infinite, it is of a time without limits.
        if self._session is not None and self._room < math.inf:
            self._session.credit += self._room
            self._session.unsent += self._room
        self._room = 0

    def _may_send(self, size: int, addr: Any) -> bool:
        """Tell whether the limits let a datagram go to a peer."""
        sessions = self.sessions
        if self._room:
            self._keep_room()
        session = self._session if addr is self._peer else sessions.known(addr)
        if session is not None and session.credit >= size:
            session.credit -= size
        elif not sessions.overdrawn(addr, session):
            return False
        return session is None or bool(sessions.may_write(session, size))

    def _sent(self, size: int, addr: Any) -> None:
        """Count a datagram to a peer that was not an answer."""
        session = self.sessions.known(addr) if self.sessions is not None else None
        if session is not None:
            session.sent += ONE_COUNTED + size

    def _is_dropped(self, error: OSError, addr: Any) -> bool:
        """Tell whether a datagram that could not be sent is dropped, as the network might have done; and count it.

        An answer always is: its protocol had no say in where it goes.
        """
        dropped = error.errno in _DROPPED or (
            addr is self._peer and error.errno != errno.EMSGSIZE and error.errno not in _CLOSED
        )
        if dropped:
            self._drop()
        return dropped

    def _drop(self) -> None:
        """Count a datagram that the system has not taken."""
        self.dropped += 1
        if self.sessions is not None:
            self.sessions.gate.tally.counts.dropped += 1

    def connectionLost(self, reason: Any = None) -> None:
        """Forget the peers, and close the port."""
        if self.sessions is not None:
            self.sessions.close()
        super().connectionLost(reason)  # type: ignore[misc]

    def read_waiting(self) -> None:
        """Read what the kernel keeps for us, before the port is closed."""
        for _ in range(TURNS_A_BURST):
            if not (self.connected and self.read_batch()):
                return

    def _not_read(self, error: OSError) -> None:
        """Go on with the next one, unless there can be none any more."""
        if error.errno in _CLOSED:
            raise error
        if error.errno not in _PASSING:
            now = self.reactor.seconds()
            if not 0 <= now - self._told_of_trouble < _TROUBLE_INTERVAL:
                self._told_of_trouble = now
                _log.warn("datagrams cannot be read at {place}: {reason}", place=self.getHost(), reason=error.strerror)


class UDPPort(_BatchMixin, udp.Port):
    """A UDP port.

    `write` never blocks and holds nothing back: a datagram for which the socket has no room is dropped, and counted
    in `dropped`. No datagram is cut.
    """

    def __init__(self, port: Any, proto: Any, interface: str = "", maxPacketSize: int = 0, reactor: Any = None) -> None:
        super().__init__(port, proto, interface, max(maxPacketSize, LONGEST_DATAGRAM), reactor)
        # Read for every datagram: Python finds what an instance has sooner than what its class has.
        self._connectedAddr = self._whole_peer = None
        self._peer = _NOBODY
        self._room = math.inf

    def _bindSocket(self) -> None:
        super()._bindSocket()
        self._cuts_address = self.addressFamily == socket.AF_INET6
        make_room(self.socket)

    def _not_read(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED:
            if self._connectedAddr:
                self.protocol.connectionRefused()
        else:
            super()._not_read(error)

    def write(self, datagram: bytes, addr: Any = None) -> Any:
        """Send a datagram, or drop it; see `IUDPTransport.write`."""
        try:
            if addr is self._peer:
                room = self._room - len(datagram)
                if room >= 0:
                    self._room = room
                elif not self._may_send(len(datagram), addr):
                    return None
                # An answer. It goes to the address as it came: with the scope, which a link-local one needs.
                sent = self.socket.sendto(datagram, self._whole_peer)
                session = self._session
                if session is not None:
                    session.sent += ONE_COUNTED + sent
                return sent
            if self.sessions is not None and addr is not None and not self._may_send(len(datagram), addr):
                return None
            written = super().write(datagram, addr)
            self._sent(len(datagram), addr)
            return written
        except OSError as error:
            if self._is_dropped(error, addr):
                return None
            if addr is not self._peer:
                raise
        # Twisted's own has the words for what else can be wrong.
        return super().write(datagram, addr)


def _place(peer: Any) -> str:
    """Write down where a datagram came from: a host and a port, or the path of a UNIX socket, which may have none."""
    if type(peer) is tuple:
        return host_port(*peer[:2])
    return os.fsdecode(peer) if peer else "somebody"


def make_room(bound: socket.socket) -> None:
    """Ask for a receive buffer that a burst fits into. Not granted, there is the system's own."""
    if bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= BURST:
        return
    for option in (getattr(socket, "SO_RCVBUFFORCE", _SO_RCVBUFFORCE), socket.SO_RCVBUF):
        with suppress(OSError):
            bound.setsockopt(socket.SOL_SOCKET, option, BURST)
            return


#: Not in Python's socket module; from Linux's asm-generic/socket.h.
_SO_RCVBUFFORCE = 33


class UNIXDatagramPort(_BatchMixin, unix.DatagramPort):
    """A UNIX datagram port over a socket that was bound by somebody else; Twisted adopts only UDP ones."""

    def __init__(self, reactor: Any, bound: socket.socket, protocol: Any) -> None:
        super().__init__(bound.getsockname(), protocol, LONGEST_UNIX_DATAGRAM, reactor=reactor)
        self._bound = bound.dup()

    def _bindSocket(self) -> None:
        self.connected = 1
        self.socket = self._bound
        self.fileno = self.socket.fileno  # type: ignore[method-assign]

    def write(self, datagram: bytes, address: Any) -> Any:  # type: ignore[override]
        """Send a datagram, or drop it if a limit says so; see `IUNIXDatagramTransport.write`."""
        if self.sessions is not None and not self._may_send(len(datagram), address):
            return None
        try:
            written = super().write(datagram, address)
        except OSError as error:
            if self._is_dropped(error, address):
                return None
            raise
        if written is None:
            # Its buffer is full.
            self._drop()
        else:
            self._sent(len(datagram), address)
        return written
