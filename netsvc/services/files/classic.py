"""The classic protocol: the client sends a file name, the server sends the file and closes.

The name ends at LF or CRLF, when the client half-closes, or, for clients that send no terminator, after a
quiet moment. A file that is not sent is a connection that closes without a byte; the access log says why. A
file that cannot be sent to its end, or only not now, is a connection that is reset, so that a part is never
taken for the whole, nor a full server for a missing file (over a UNIX socket, which knows no reset, they look alike).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.services.files.core import FilesCore
from netsvc.services.files.direct import half_close
from netsvc.services.files.download import Download
from netsvc.services.files.name import NameReader, whole_name
from netsvc.services.files.source import BusyError, OpenFile, RefusedError
from netsvc.text import peer_name

__all__ = ["Classic"]


@implementer(IHalfCloseableProtocol)
class Classic(Protocol):
    """One request. Whatever follows the name is read and dropped.

    It has to be read: a connection that is closed with bytes unread is reset (RFC 1122, section 4.2.2.13), and
    a reset throws away the end of the file that is still on its way. So we end our direction only, and read on
    until the client closes, or until `farewell.LINGER` is over.
    """

    transport: Any
    factory: Any

    #: Whether the name is awaited; and what has come of it, once a part has.
    _waiting = False
    _reader: NameReader | None = None
    _timer: Any = None
    #: The name that was asked for, until its access line is written.
    _asked: bytes | None = None
    _started = 0.0
    _file: OpenFile | None = None
    #: Whether we have written all that we will, and whether the client has sent all.
    _closing = False
    _client_done = False
    _lost = False

    def connectionMade(self) -> None:
        """Wait for a name."""
        self._core: FilesCore = self.factory.core
        if self._core.draining:
            self._leave()
            return
        self._waiting = True
        self._core.waiting.add(self._leave)

    def dataReceived(self, data: bytes) -> None:
        """Collect the name."""
        if not self._waiting:
            return
        reader = self._reader
        if reader is None:
            name = whole_name(data, self._core.name_limit)
            if name is not None:
                self._ask(name)
                return
            reader = self._reader = NameReader(self._core.name_limit)
        try:
            complete = reader.feed(data)
        except RefusedError as refusal:
            self._begin(reader.name)
            self._refuse(refusal)
            return
        if complete:
            self._ask(reader.name)
        else:
            self._after(self._core.quiet, self._fell_quiet)

    def readConnectionLost(self) -> None:
        """Take what has come for the name, and answer it: the client still listens."""
        self._client_done = True
        if self._reader is not None:
            self._ask(self._reader.name)
        elif self._waiting or self._closing:
            self._close()

    def writeConnectionLost(self) -> None:
        """Note that all has been sent; the client has `farewell.LINGER` seconds to close as well."""
        if self._waiting:
            # Not our doing, but the host's at the end of a drain: there is no way left to answer on.
            self._leave()
            return
        self._record("sent")
        self._core.farewells.add(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let go of the file and the timer, and write the access line if that is still to do."""
        self._lost = True
        self._stop_waiting()
        self._core.farewells.remove(self.transport)
        if self._file is not None:
            self._file.close()
        if self._asked is None:
            return
        if reason.check(ConnectionAborted):
            self._record("cut off")
        elif self._closing and (not self._can_half_close() or reason.check(ConnectionDone)):
            # Over TLS an ordinary end cannot be told from a loss: many clients close without the farewell it asks for.
            self._record("sent")
        else:
            self._record("client went away")

    def _after(self, delay: float, call: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._core.context.reactor.callLater(delay, call)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _fell_quiet(self) -> None:
        # If the reactor was busy, the rest of the name may lie in the socket: it looks there once more first.
        self._after(0, self._stayed_quiet)

    def _stayed_quiet(self) -> None:
        assert self._reader is not None
        self._ask(self._reader.name)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self._reader = None
            self._core.waiting.discard(self._leave)
            self._cancel()

    def _begin(self, name: bytes) -> None:
        self._stop_waiting()
        self._asked = name
        self._started = self._core.context.reactor.seconds()

    def _ask(self, name: bytes) -> None:
        self._begin(name)
        try:
            self._asked = self._core.decode(name)
            self._file = self._core.open(self._asked)
        except RefusedError as refusal:
            self._refuse(refusal)
            return
        self._file.give_way = self._give_way
        Download(self._file, self.transport, self._ended, self._core.ahead, self._core.shares, last=True).start()

    def _give_way(self) -> None:
        self._ended("stalled, and gave way to another")

    def _refuse(self, refusal: RefusedError) -> None:
        self._record(str(refusal))
        if isinstance(refusal, BusyError):
            self.transport.abortConnection()
        else:
            self._close()

    def _leave(self) -> None:
        # Nothing has been asked for, so there is no answer that a reset could cut.
        self._stop_waiting()
        self.transport.loseConnection()

    def _ended(self, cut: str | None) -> None:
        if self._lost:
            return
        if cut is None:
            self._close()
        else:
            self._record(cut)
            self.transport.abortConnection()

    def _close(self) -> None:
        self._closing = True
        self._stop_waiting()
        if self._client_done or not self._can_half_close():
            self.transport.loseConnection()
        elif half_close(self.transport):
            self.writeConnectionLost()
        else:
            self.transport.loseWriteConnection()

    def _can_half_close(self) -> bool:
        return _knows_half_close(self.transport.__class__) and not getattr(self.transport, "TLS", False)

    def _record(self, result: str) -> None:
        if self._asked is not None:
            size = 0 if self._file is None else self._file.offset
            self._core.record(peer_name(self.transport.getPeer()), self._asked, size, self._started, result)
            self._asked = None


@lru_cache(maxsize=32)
def _knows_half_close(transport: type) -> bool:
    # Of the class, not of the object: a wrapper (TLS, the PROXY protocol) claims the interfaces of what it wraps,
    # but a half-close ends it.
    return bool(IHalfCloseableDescriptor.implementedBy(transport))
