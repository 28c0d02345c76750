"""The classic protocol: the client sends a file name, the server sends the file and closes.

The name ends at LF or CRLF, when the client half-closes, or, for clients that send no terminator, after a moment of
silence, which is longer while there is no such file: a person may still be typing. If there is no such file, the
connection closes without a byte; the access log has the reason. In any other case, it is reset if the file is not sent
whole, so that a part is never taken for the whole, nor a busy server for a missing file (a UNIX socket has no reset:
there they look alike).
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

from netsvc.base.text import peer_name
from netsvc.services.files.core import PATIENCE, FilesCore
from netsvc.services.files.download import Download
from netsvc.services.files.file import FileBusyError, FileRefusedError, OpenFile
from netsvc.services.files.names import NameReader, whole_name
from netsvc.services.files.transport import half_close


@implementer(IHalfCloseableProtocol)
class Classic(Protocol):
    """One request. Whatever follows the name is read and dropped.

    It must be read: closing a connection with unread bytes resets it (RFC 1122, section 4.2.2.13), and a reset drops
    the end of the file that is still on its way. So only our direction is ended, and we read until the client closes
    or `LINGER` seconds have passed.
    """

    transport: Any
    factory: Any

    #: Whether the name is awaited, and its reader, once a part has arrived.
    _waiting = False
    _reader: NameReader | None = None
    _timer: Any = None
    #: The requested name, until its access line is written.
    _asked: bytes | None = None
    _started = 0.0
    _file: OpenFile | None = None
    #: Whether we have written everything, and whether the client has sent everything.
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
        except FileRefusedError as refusal:
            self._begin(reader.name)
            self._refuse(refusal)
            return
        if complete:
            self._ask(reader.name)
        else:
            self._after(self._core.quiet, self._look, False)

    def readConnectionLost(self) -> None:
        """Answer the name as it is: the client still reads."""
        self._client_done = True
        if self._reader is not None:
            self._ask(self._reader.name)
        elif self._waiting or self._closing:
            self._close()

    def writeConnectionLost(self) -> None:
        """Record that everything has been sent; the client has `LINGER` seconds to close as well."""
        if self._waiting:
            # The server half-closed it at the end of a drain: no answer can be sent any more.
            self._leave()
            return
        self._record("sent")
        self._core.lingering.add(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close the file, cancel the timer, and write the access line if it is not written yet."""
        self._lost = True
        self._stop_waiting()
        self._core.lingering.remove(self.transport)
        if self._file is not None:
            self._file.close()
        if self._asked is None:
            return
        if reason.check(ConnectionAborted):
            self._record("cut off")
        elif self._closing and (not self._can_half_close() or reason.check(ConnectionDone)):
            # Over TLS an ordinary end looks like a loss: many clients close without close_notify.
            self._record("sent")
        else:
            self._record("client went away")

    def _after(self, delay: float, call: Callable[[bool], None], is_last: bool) -> None:
        self._cancel()
        self._timer = self._core.context.reactor.callLater(delay, call, is_last)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _look(self, is_last: bool) -> None:
        # If the reactor was busy, the rest of the name may be in the socket: read it once more first.
        self._after(0, self._end_name, is_last)

    def _end_name(self, is_last: bool) -> None:
        """Send the file, if what has come is the name of one. If not, wait longer, unless this is the last look."""
        assert self._reader is not None
        name = self._reader.name
        if is_last:
            self._ask(name)
            return
        try:
            found = self._core.find(name)
        except FileBusyError as refusal:
            self._begin(name)
            self._refuse(refusal)
        except FileRefusedError:
            self._after((PATIENCE - 1) * self._core.quiet, self._look, True)
        else:
            self._begin(name)
            self._send(*found)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self._reader = None
            self._core.waiting.discard(self._leave)
            self._cancel()

    def _begin(self, name: bytes) -> None:
        self._stop_waiting()
        self._asked = self._core.shown(name)
        self._started = self._core.context.reactor.seconds()

    def _ask(self, name: bytes) -> None:
        self._begin(name)
        try:
            found = self._core.find(name)
        except FileRefusedError as refusal:
            self._refuse(refusal)
        else:
            self._send(*found)

    def _send(self, file: OpenFile, path: bytes) -> None:
        self._asked = path
        self._file = file
        file.evict = self._evicted
        Download(file, self.transport, self._ended, self._core.ahead, self._core.shares, last=True).start()

    def _evicted(self) -> None:
        self._ended("stalled, and gave way to another")

    def _refuse(self, refusal: FileRefusedError) -> None:
        self._record(str(refusal))
        if isinstance(refusal, FileBusyError):
            self.transport.abortConnection()
        else:
            self._close()

    def _leave(self) -> None:
        # Closed in order, it would mean that there is no such file as the client is about to ask for.
        self._stop_waiting()
        self.transport.abortConnection()

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
    # Of the class, not the object: a wrapper (TLS, the PROXY protocol) claims the interfaces of what it wraps, but a
    # half-close ends it.
    return bool(IHalfCloseableDescriptor.implementedBy(transport))
