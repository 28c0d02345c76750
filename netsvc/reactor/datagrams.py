"""Datagram ports that read in bounded batches, send at once, and drop what the system does not take.

Used by `netsvc.reactor.epoll`, and for netsvc's own sockets on every reactor. Otherwise they are Twisted's ports.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from itertools import repeat
from time import monotonic
from typing import Any

from twisted.internet import base, udp, unix
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from netsvc.reactor.batch import (
    BATCH,
    MOST_IN_SERIES,
    MOST_SERIES_BYTES,
    Received,
    make_datagrams,
    make_receiver,
    series_control,
)
from netsvc.reactor.pktinfo import (
    CONTROL_ROOM,
    Source,
    find_info,
    is_default_source,
    join_controls,
    local_address,
    request_info,
    source_of,
)

__all__ = [
    "DATAGRAMS_A_TURN",
    "LONGEST_DATAGRAM",
    "ONE_COUNTED",
    "ONE_DATAGRAM",
    "TURN_SECONDS",
    "BesidePort",
    "UDPPort",
    "UNIXDatagramPort",
]

#: The longest UDP datagram is 65,507 bytes. Twisted's default of 8,192 would silently truncate longer ones.
LONGEST_DATAGRAM = 65535
#: On Linux a datagram of a UNIX socket may fill the send buffer, 212,992 bytes by default.
LONGEST_UNIX_DATAGRAM = 212992
#: Datagrams that a port reads at most before the reactor serves others, and the seconds after which it reads no more:
#: connections that are ready wait meanwhile. Twisted limits bytes (256 KiB) instead, so a flood of empty datagrams, or
#: of some that are slow to serve, would block its reactor.
DATAGRAMS_A_TURN, TURN_SECONDS = 512, 0.001
#: The receive buffer in bytes requested for bursts; the kernel grants at most net.core.rmem_max, except to root.
BURST = 4 * 1024 * 1024
#: Batches that empty a buffer of `BURST` bytes: the kernel accounts 768 bytes for the smallest datagram, and doubles
#: the requested size.
TURNS_A_BURST = 2 * BURST // 768 // DATAGRAMS_A_TURN + 1

#: One datagram, in a number that counts datagrams in its upper bits and bytes below this value.
ONE_DATAGRAM = 1 << 22

#: The same for the totals of a session, which never reach 2**52 bytes.
ONE_COUNTED = 1 << 52

#: Errors of a descriptor that is not an open socket.
_CLOSED = frozenset((errno.EBADF, errno.ENOTSOCK))
#: Errors of datagrams sent earlier, which the system reports at the next call of any kind; and a lack of memory.
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EINTR", "ECONNREFUSED", "ECONNRESET", "EMSGSIZE", "EPERM", "EACCES", "EPROTO", "ENOPROTOOPT"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ETIMEDOUT", "ENOBUFS", "ENOMEM"),
    )
    if hasattr(errno, name)
)
#: Errors for which a datagram is dropped: a full buffer, a firewall, no route. Another datagram may be sent.
_DROPPED = _TRANSIENT - {errno.EINTR, errno.ECONNREFUSED, errno.EMSGSIZE, errno.EACCES}

#: Errors for a source address that the host does not have.
_NOT_A_SOURCE = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH))
#: Errors for which a socket sends no more datagrams at once.
_NO_SERIES = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP))
#: Datagrams of a peer to one local address after which it is worth while to see whether the system chooses that anyway.
_PROBED_AFTER = 16
#: Local addresses that are kept in the form for sending.
_MOST_SOURCES = 1024

#: Seconds between two log lines about read errors.
_READ_ERROR_INTERVAL = 60.0

#: Equal to no address.
_NO_PEER = object()

_log = Logger(namespace="netsvc.reactor.datagrams")


class _BatchMixin:
    """Reads datagrams in batches; shared by UDP and UNIX ports."""

    socket: Any
    protocol: Any
    connected: Any
    getHost: Any
    maxPacketSize: int
    reactor: Any
    #: Datagrams that the system did not take.
    dropped = 0
    #: Without limits, the source of the last datagram, as passed to the protocol, and as received from the system.
    _peer: Any = _NO_PEER
    _peer_sockaddr: Any = None
    _cuts_address = False
    #: Whether the port is bound to every address, so that its answers must be told from which one they leave; what the
    #: system has reported of that for the last datagram; and what it is made into.
    _any_address = False
    _peer_controls = b""
    _sources: dict[bytes, Source]
    #: The limits of its peers, a `netsvc.guard.sessions.Sessions`, if there are any.
    sessions: Any = None
    #: The session of the last datagram, if there are limits, and the longest answer to it that is sent unchecked.
    _session: Any = None
    _room = -1
    #: Open ports of conversations that began here; see `BesidePort`.
    beside: set[Any] | frozenset[Any] = frozenset()
    #: When a read error was logged last.
    _read_error_logged_at = -math.inf
    #: With the C extension, what receives, and collects answers until the end of a turn; and during one its `collect`.
    _datagrams: Any = None
    _collect: Any = None
    _collects = True

    #: Monotonic seconds, for the length of a turn.
    turn_clock = staticmethod(monotonic)

    def doRead(self) -> None:
        """Read a batch."""
        self.read_batch()

    def read_batch(self, limit: float = TURN_SECONDS) -> bool:
        """Read `DATAGRAMS_A_TURN` datagrams at most, for about `limit` seconds; return whether there may be more."""
        read = self._read_unlimited if self.sessions is None else self._read_limited
        datagrams = self._datagrams
        if datagrams is None or not self._collects:
            return read(limit)
        self._collect = datagrams.collect
        try:
            return read(limit)
        finally:
            self._collect = None
            self._send_collected()

    def _read_unlimited(self, limit: float) -> bool:
        protocol, receive = self.protocol, self._receive
        now = self.turn_clock
        end = now() + limit
        for _ in repeat(None, DATAGRAMS_A_TURN // BATCH):
            try:
                batch = receive()
            except OSError as error:
                self._not_read(error)
                return False
            for data, (peer, sockaddr), controls in batch:
                self._peer, self._peer_sockaddr, self._peer_controls = peer, sockaddr, controls
                try:
                    protocol.datagramReceived(data, peer)
                except BaseException:  # noqa: BLE001  (an error with one datagram must not stop the port)
                    self.protocol_failed(peer)
                # The protocol may have closed the port.
                if not self.connected:
                    return False
            if len(batch) < BATCH:
                return False
            if now() >= end:
                break
        return True

    def _receive(self) -> list[Received]:
        """Receive up to `BATCH` datagrams; fewer mean that no more wait. Raises `OSError`."""
        received: list[Received] = []
        for _ in repeat(None, BATCH):
            try:
                if self._any_address:
                    data, controls, _, sockaddr = self.socket.recvmsg(self.maxPacketSize, CONTROL_ROOM)
                else:
                    controls, (data, sockaddr) = [], self.socket.recvfrom(self.maxPacketSize)
            except OSError as error:
                if not received:
                    raise
                if not isinstance(error, BlockingIOError):
                    self._not_read(error)
                break
            # Pass on only host and port of an IPv6 address, as Twisted does.
            peer = sockaddr[:2] if self._cuts_address else sockaddr
            received.append((data, (peer, sockaddr), join_controls(controls)))
        return received

    def _read_limited(self, limit: float) -> bool:
        sessions = self.sessions
        # The sessions that are not answered any more, with the further datagrams of each.
        unanswered: dict[Any, int] = {}
        try:
            return self._read_of_sessions(unanswered, limit)
        finally:
            if unanswered:
                sessions.count_unanswered(unanswered)
            if sessions.paced:
                sessions.end_batch()

    def _read_of_sessions(self, unanswered: dict[Any, int], limit: float) -> bool:
        protocol, receive, any_address = self.protocol, self._receive, self._any_address
        sessions = self.sessions
        paced, extra, known = sessions.paced, sessions.extra, sessions.young.get
        grants_answers = sessions.grants_answers
        one, counted, last_length = ONE_DATAGRAM, ONE_COUNTED, 0
        now = self.turn_clock
        end = now() + limit
        for _ in repeat(None, DATAGRAMS_A_TURN // BATCH):
            try:
                batch = receive()
            except OSError as error:
                self._not_read(error)
                return False
            for data, (peer, sockaddr), controls in batch:
                session = known(peer)
                if session is None:
                    session = sessions.find(peer, sockaddr)
                    # `find` may have started a new generation.
                    known = sessions.young.get
                    if session is None:
                        continue
                if any_address and controls != session.controls:
                    self._note_source(session, controls)
                length = len(data)
                # Datagrams in a row often have the same length.
                if length != last_length:
                    last_length, counted = length, ONE_COUNTED + length
                session.received += counted
                if session.sent >= session.ceiling and self._is_over(session, unanswered):
                    continue
                self._room = length + extra
                if paced:
                    used = session.used + one + length
                    if used <= session.granted:
                        session.used = used
                        session.unchecked += length
                    elif not sessions.may_read(session, length):
                        continue
                    if session.granted >= 0 and grants_answers:
                        self._room = length
                self._session = session
                try:
                    # By this very object `write` knows an answer.
                    protocol.datagramReceived(data, session.address)
                except BaseException:  # noqa: BLE001  (as above)
                    self.protocol_failed(session.address)
                if not self.connected:
                    return False
            if len(batch) < BATCH:
                return False
            if now() >= end:
                break
        return True

    def _is_over(self, session: Any, unanswered: dict[Any, int]) -> bool:
        """Return whether a peer has exceeded `answers`. In a flood, or a loop, this costs as little as possible."""
        if session in unanswered:
            unanswered[session] += 1
        elif self.sessions.may_answer(session):
            return False
        else:
            unanswered[session] = 0
        return True

    def _note_source(self, session: Any, controls: Any) -> None:
        """Choose the source of what is sent to a peer that did not use this local address before, or only lately."""
        source = self._source(controls)
        session.lookups += 1
        if session.lookups > _PROBED_AFTER:
            # To set the source takes a quarter of the time of sending, so not for long if the system chooses it anyway.
            session.controls = controls
            if is_default_source(source, self.socket.family, session.sockaddr):
                source = None
        session.source = source

    def _source(self, controls: Any) -> Source:
        info = find_info(controls)
        if not info:
            return None
        source = self._sources.get(info)
        if source is None and info not in self._sources:
            if len(self._sources) >= _MOST_SOURCES:
                self._sources.clear()
            source = self._sources[info] = source_of(info)
        return source

    def protocol_failed(self, address: Any) -> None:
        """Log the exception that the protocol has just raised with a datagram from this address."""
        if self.sessions is None:
            _log.failure("a protocol failed with a datagram")
        else:
            self.sessions.fail(address)

    def _send_collected(self) -> None:
        """Send the answers that were collected, with one call of the system; before anything else is sent."""
        if self._datagrams is None:
            return
        for datagram, sockaddr, source, session, number in self._datagrams.flush():
            if number in _NOT_A_SOURCE and source is not None:
                # A broadcast address, or one that the host has no more.
                with suppress(OSError):
                    self.socket.sendto(datagram, sockaddr)
                    continue
            # It was counted when it was written.
            if session is not None:
                session.sent -= ONE_COUNTED + len(datagram)
            self._drop()

    def _is_dropped(self, error: OSError, *, is_answer: bool) -> bool:
        """Return whether a datagram that could not be sent is dropped, as the network may do, and count it if so.

        An answer is always dropped, as its protocol did not choose the address, unless it is too long or the socket is
        closed.
        """
        dropped = error.errno in _DROPPED or (
            is_answer and error.errno != errno.EMSGSIZE and error.errno not in _CLOSED
        )
        if dropped:
            self._drop()
        return dropped

    def _drop(self) -> None:
        """Count a datagram that the system did not take."""
        self.dropped += 1
        if self.sessions is not None:
            self.sessions.gate.tally.counts.dropped += 1

    def connectionLost(self, reason: Any = None) -> None:
        """Close the port, and end the sessions, unless conversations that began here go on."""
        self._send_collected()
        if self.sessions is not None and not self.beside:
            self.sessions.close()
        super().connectionLost(reason)  # type: ignore[misc]

    def read_waiting(self) -> None:
        """Read the datagrams that wait in the kernel, before the port is closed."""
        for _ in range(TURNS_A_BURST):
            if not (self.connected and self.read_batch(math.inf)):
                return

    def _not_read(self, error: OSError) -> None:
        """Handle a read error: raise it if the socket is closed, ignore transient errors, and log others."""
        if error.errno in _CLOSED:
            raise error
        if error.errno not in _TRANSIENT:
            now = self.reactor.seconds()
            if not 0 <= now - self._read_error_logged_at < _READ_ERROR_INTERVAL:
                self._read_error_logged_at = now
                _log.warn("datagrams cannot be read at {place}: {reason}", place=self.getHost(), reason=error.strerror)


class UDPPort(_BatchMixin, udp.Port):
    """A UDP port.

    `write` neither blocks nor buffers: a datagram for which the socket has no room is dropped, and counted in
    `dropped`. No datagram is truncated.
    """

    #: The class of the ports of `open_beside`.
    beside_kind: type[BesidePort]
    #: Whether several datagrams can be passed to the system at once.
    _takes_series = False

    def __init__(self, port: Any, proto: Any, interface: str = "", maxPacketSize: int = 0, reactor: Any = None) -> None:
        super().__init__(port, proto, interface, max(maxPacketSize, LONGEST_DATAGRAM), reactor)
        # Read for every datagram; instance attributes are faster than class attributes.
        self._connectedAddr = self._peer_sockaddr = None
        self._peer = _NO_PEER
        self._session = None
        self._room = -1

    def _bindSocket(self) -> None:
        super()._bindSocket()
        self._cuts_address = self.addressFamily == socket.AF_INET6
        make_room(self.socket)
        self._any_address = request_info(self.socket)
        self._begin_batches()

    def _begin_batches(self) -> None:
        """Receive and send several datagrams at a time, if the socket can."""
        self._sources = {}
        self._datagrams = make_datagrams(self.socket, controls=self._any_address)
        if self._datagrams is not None:
            receive = self._datagrams.receive
        else:
            receive = make_receiver(self.socket, controls=self._any_address)
        if receive is not None:
            self._receive = receive  # type: ignore[method-assign]
            self._takes_series = True

    def _not_read(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED:
            if self._connectedAddr:
                self.protocol.connectionRefused()
        else:
            super()._not_read(error)

    def write(self, datagram: bytes, addr: Any = None) -> Any:
        """Send a datagram, or drop it; see `IUDPTransport.write`."""
        session, collect = self._session, self._collect
        if session is not None and addr is session.address:
            # The common case is one answer, about as long as its request, which no limit forbids.
            room, self._room = self._room, -1
            if len(datagram) > room:
                if not self.sessions.may_send(addr, session, len(datagram)):
                    return None
            elif session.granted >= 0:
                session.unchecked -= len(datagram)
            if collect is not None and collect(datagram, session.sockaddr, session.source, session):
                session.sent += ONE_COUNTED + len(datagram)
                return len(datagram)
            is_answer = True
        elif addr is self._peer:
            if collect is not None and collect(datagram, self._peer_sockaddr, self._source(self._peer_controls), None):
                return len(datagram)
            self._send_collected()
            try:
                return self._send(datagram, self._peer_sockaddr, self._source(self._peer_controls))
            except OSError as error:
                if self._is_dropped(error, is_answer=True):
                    return None
            return super().write(datagram, addr)
        else:
            session, is_answer = None, False
            if self.sessions is not None and addr is not None:
                session = self.sessions.known(addr)
                if not self.sessions.may_send(addr, session, len(datagram)):
                    return None
        self._send_collected()
        try:
            if session is None:
                return super().write(datagram, addr)
            # It is sent to the address as received, with the scope that link-local addresses need.
            if session.source is None:
                sent = self.socket.sendto(datagram, session.sockaddr)
            else:
                sent = self._send(datagram, session.sockaddr, session.source)
        except OSError as error:
            if self._is_dropped(error, is_answer=is_answer):
                return None
            if session is None:
                raise
        else:
            session.sent += ONE_COUNTED + sent
            return sent
        # Let Twisted report any other error.
        return super().write(datagram, addr)

    def open_beside(self, protocol: Any, peer: Any, numbers: Iterable[int] = (0,)) -> BesidePort:
        """Open a port for a conversation with `peer`; see `netsvc.interfaces.Context.open_datagrams`."""
        session = None if self.sessions is None else self.sessions.known(peer)
        if session is not None:
            source = session.source
        else:
            source = self._source(self._peer_controls) if self._any_address else None
        family = self.socket.family
        own = self.socket.getsockname()
        is_unspecific = ip_address(own[0].partition("%")[0]).is_multicast
        own = (("::", 0, 0, 0) if family == socket.AF_INET6 else ("0.0.0.0", 0)) if is_unspecific else own
        local = local_address(source, family) or own
        error: OSError | None = None
        for number in numbers:
            try:
                opened = self.beside_kind(self, self._bind_beside(local, number), protocol, peer)
            except OSError as failed:
                error = failed
            else:
                opened.startListening()
                return opened
        raise CannotListenError(local[0], 0, error or OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))

    def _bind_beside(self, local: tuple[Any, ...], number: int) -> Any:
        bound = socket.socket(self.socket.family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            if bound.family == socket.AF_INET6:
                only = self.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            bound.bind((local[0], number, *local[2:]))
        except BaseException:
            bound.close()
            raise
        return bound

    def _send(self, datagram: bytes, sockaddr: Any, source: Source) -> Any:
        if source is None:
            return self.socket.sendto(datagram, sockaddr)
        try:
            return self.socket.sendmsg((datagram,), source, 0, sockaddr)
        except OSError as error:
            if error.errno not in _NOT_A_SOURCE:
                raise
            # A broadcast address, or one that the host has no more.
            return self.socket.sendto(datagram, sockaddr)


class BesidePort(UDPPort):
    """A port for one conversation with a peer, which began at another port.

    It shares the sessions of that port, and so the limits and the counts of its peers, even after that one is closed.
    The limit `answers` does not apply to the peer, unless a user has set it: a conversation sends what was asked for.
    """

    # It sends from the address that the socket is bound to, and mostly one datagram for each that it receives.
    _collects = False

    def __init__(self, main: UDPPort, bound: socket.socket, protocol: Any, peer: Any) -> None:
        super().__init__(0, protocol, reactor=main.reactor)
        self._main = main
        self._bound = bound
        self._ended: Callable[[], None] = _do_nothing
        if not main.beside:
            main.beside = set()
        self._peer_of_it = peer

    @property
    def sessions(self) -> Any:
        """The sessions of the other port: a reload may have replaced them."""
        return self._main.sessions

    def _bindSocket(self) -> None:
        self.socket = self._bound
        self.fileno = self._bound.fileno  # type: ignore[method-assign]
        self.addressFamily = self._bound.family
        self._realPortNumber = self._bound.getsockname()[1]
        self._cuts_address = self._bound.family == socket.AF_INET6
        self._begin_batches()
        self.connected = 1
        main, sessions = self._main, self.sessions
        assert isinstance(main.beside, set)
        main.beside.add(self)
        if sessions is not None:
            self._ended = sessions.converse(self, self._peer_of_it)

    def _is_over(self, session: Any, unanswered: dict[Any, int]) -> bool:
        return not self.sessions.lift_answers(session) and super()._is_over(session, unanswered)

    def _send(self, datagram: bytes, sockaddr: Any, source: Source) -> Any:
        return self.socket.sendto(datagram, sockaddr)

    def write_series(self, datagrams: bytes | memoryview, size: int, addr: Any) -> int:
        """Send each `size` bytes as a datagram, and the rest as a shorter one; return how many the system has taken.

        Where no limit has to see each of them, many take one call of the system. What the system refuses at once counts
        in `dropped` as one.
        """
        if len(datagrams) <= size:
            return 0 if self.write(datagrams, addr) is None else 1  # type: ignore[arg-type]
        rest, count = memoryview(datagrams), -(-len(datagrams) // size)
        sessions = self.sessions
        session = None if sessions is None else sessions.known(addr)
        is_free = session is not None and sessions.free and session.sent + count * ONE_COUNTED < session.ceiling
        taken, at_once = 0, min(MOST_IN_SERIES, MOST_SERIES_BYTES // size)
        self._send_collected()
        while self._takes_series and at_once > 1 and count - taken > 1 and (is_free or sessions is None):
            try:
                sent = self.socket.sendmsg(
                    (rest[: at_once * size],), series_control(size), 0, session.sockaddr if session else addr
                )
            except OSError as error:
                if self._is_dropped(error, is_answer=False):
                    return taken
                # Longer than a packet here, or there is no way to checksum them. Other errors come up again below.
                self._takes_series = error.errno not in _NO_SERIES
                break
            if session is not None:
                session.sent += min(at_once, count - taken) * ONE_COUNTED + sent
            taken += min(at_once, count - taken)
            rest = rest[sent:]
        for number in range(count - taken):
            if self.write(rest[number * size : (number + 1) * size], addr) is None:  # type: ignore[arg-type]
                return taken + number
        return count

    def loseConnection(self) -> None:
        """Close the port, as a drain does at its deadline."""
        self.stopListening()

    def loseWriteConnection(self) -> None:
        """Close the port: it has no half to close."""
        self.stopListening()

    def connectionLost(self, reason: Any = None) -> None:
        """Close the port. Its protocol can still send."""
        if not self.connected:
            return
        self._send_collected()
        base.BasePort.connectionLost(self, reason)
        try:
            self.protocol.doStop()
        finally:
            self.socket.close()
            del self.socket
            del self.fileno
            main = self._main
            assert isinstance(main.beside, set)
            main.beside.discard(self)
            if not main.beside and not main.connected and main.sessions is not None:
                main.sessions.close()
            self._ended()
            if hasattr(self, "d"):
                self.d.callback(None)
                del self.d


UDPPort.beside_kind = BesidePort


def _do_nothing() -> None:
    """Do nothing: there are no limits."""


def make_room(bound: socket.socket) -> None:
    """Request a receive buffer of `BURST` bytes; keep the system's default if that is refused."""
    if bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= BURST:
        return
    for option in (getattr(socket, "SO_RCVBUFFORCE", _SO_RCVBUFFORCE), socket.SO_RCVBUF):
        with suppress(OSError):
            bound.setsockopt(socket.SOL_SOCKET, option, BURST)
            return


#: Not in Python's socket module; from Linux's asm-generic/socket.h.
_SO_RCVBUFFORCE = 33


class UNIXDatagramPort(_BatchMixin, unix.DatagramPort):
    """A UNIX datagram port on a socket that is already bound; Twisted adopts only UDP sockets."""

    def __init__(self, reactor: Any, bound: socket.socket, protocol: Any) -> None:
        super().__init__(bound.getsockname(), protocol, LONGEST_UNIX_DATAGRAM, reactor=reactor)
        self._bound = bound.dup()

    def _bindSocket(self) -> None:
        self.connected = 1
        self.socket = self._bound
        self.fileno = self.socket.fileno  # type: ignore[method-assign]

    def write(self, datagram: bytes, address: Any) -> Any:  # type: ignore[override]
        """Send a datagram, or drop it if a limit requires that; see `IUNIXDatagramTransport.write`."""
        session = None if self.sessions is None else self.sessions.known(address)
        if self.sessions is not None and not self.sessions.may_send(address, session, len(datagram)):
            return None
        try:
            written = super().write(datagram, address)
        except OSError as error:
            if self._is_dropped(error, is_answer=session is not None or address is self._peer):
                return None
            raise
        if written is None:
            # The receiver's buffer is full.
            self._drop()
        elif session is not None:
            session.sent += ONE_COUNTED + len(datagram)
        return written
