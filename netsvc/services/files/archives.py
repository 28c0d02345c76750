"""Sends archives of directories over HTTP: a few at once, made in threads as fast as the clients read them."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.hosts import peer_key
from netsvc.http.connection import Exchange, header_lines
from netsvc.services.files.archive import KINDS, ArchiveRefusedError, DirectoryArchive
from netsvc.services.files.core import FilesCore
from netsvc.services.files.file import CutError, FileBusyError, FileRefusedError
from netsvc.services.files.root import OutsideError, Root

#: The name of the archive of the root.
_ROOT = "files"


class ArchiveAnswer(Protocol):
    """An answer, and its access line; see `netsvc.services.files.http.FileAnswer`."""

    exchange: Exchange
    lines: bytes

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer without a file."""

    def ended(self, name: bytes, result: str, size: int) -> None:
        """Record the answer."""


class Archives:
    """The archives that are being sent. One that has not been read for a while loses its place to a new one."""

    def __init__(self, core: FilesCore) -> None:
        self._core = core
        #: Those that are sent, the one that was read last at the end.
        self.sending: dict[Sending, None] = {}

    def answer(self, answer: ArchiveAnswer, name: bytes, kind: str) -> None:
        """Answer with the archive of a directory. Raises `FileRefusedError`."""
        core, exchange = self._core, answer.exchange
        if not core.archives:
            raise FileRefusedError("no archives")
        path = core.directory_path(name)
        title = core.text_of(path.rstrip(b"/").rpartition(b"/")[2]) or _ROOT
        quoted = quote(f"{title}.{kind}", safe="", errors="replace")
        lines = answer.lines + header_lines(
            {
                "Content-Type": KINDS[kind].decode("ascii"),
                "Content-Disposition": f"attachment; filename=\"{_ROOT}.{kind}\"; filename*=UTF-8''{quoted}",
                "Cache-Control": "no-cache",
                "X-Content-Type-Options": "nosniff",
            }
        )
        shown = (path or b"/") + f"?{kind}".encode("ascii")
        if exchange.request.method == b"HEAD":
            exchange.start(HTTPStatus.OK, lines)
            exchange.finish()
            answer.ended(shown, "sent", 0)
            return
        peer = peer_key(getattr(exchange.peer, "host", ""))
        if sum(each.peer == peer for each in self.sending) >= max(1, core.archives // 2):
            raise FileBusyError("too many archives of this address")
        if len(self.sending) >= core.archives and not self._make_room():
            raise FileBusyError("too many archives")
        tree = core.tree()
        archive = DirectoryArchive(tree, path, title, kind, core.archive_limits)
        sending = Sending(core, answer, archive, tree.root, lines, shown, peer, self)
        self.sending[sending] = None
        sending.start()

    def _make_room(self) -> bool:
        first = next(iter(self.sending))
        if self._core.context.reactor.seconds() - first.moved < self._core.stall:
            return False
        first.cut("stalled, and gave way to another")
        return True


@implementer(IPushProducer)
class Sending:
    """One archive on its way. No more than one piece of it is in memory, besides what the transport has."""

    def __init__(  # noqa: PLR0917
        self,
        core: FilesCore,
        answer: ArchiveAnswer,
        archive: DirectoryArchive,
        root: Root,
        lines: bytes,
        shown: bytes,
        peer: str,
        owner: Archives,
    ) -> None:
        self.peer = peer
        self.moved = core.context.reactor.seconds()
        self._reactor = core.context.reactor
        self._answer = answer
        self._exchange = answer.exchange
        self._archive = archive
        self._root = root
        self._lines = lines
        self._shown = shown
        self._owner = owner
        self._deadline = self._reactor.callLater(core.archive_time, self.cut, "took too long")
        self._is_paused = self._is_busy = self._is_over = self._loops = False

    def start(self) -> None:
        """Begin."""
        self._exchange.producer = self
        self._exchange.when_ended(partial(self._over, "client went away"))
        self._go_on()

    def pauseProducing(self) -> None:
        """Make no piece until the client has read those before."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """Continue."""
        self._is_paused = False
        self._moved()
        self._go_on()

    def stopProducing(self) -> None:
        """Do nothing: the exchange ends."""

    def _moved(self) -> None:
        self.moved = self._reactor.seconds()
        if self in self._owner.sending:
            # Reinserted, to be the last one.
            del self._owner.sending[self]
            self._owner.sending[self] = None

    def _go_on(self) -> None:
        if self._loops:
            return
        self._loops = True
        while not (self._is_paused or self._is_busy or self._is_over):
            self._is_busy = True
            self._in_thread().addCallbacks(self._made, self._failed)
        self._loops = False

    def _in_thread(self) -> Deferred[bytes | None]:
        reactor: Any = self._reactor
        if not hasattr(reactor, "getThreadPool"):
            return maybeDeferred(self._archive.next)
        return deferToThreadPool(reactor, reactor.getThreadPool(), self._archive.next)

    def _made(self, piece: bytes | None) -> None:
        self._is_busy = False
        if self._is_over:
            self._release()
            return
        if piece is None:
            self._over("sent, but not all could be read" if self._archive.left_out else "sent")
            self._exchange.finish()
            return
        if piece:
            if not self._exchange.status:
                self._exchange.start(HTTPStatus.OK, self._lines)
            self._exchange.write(piece)
            self._moved()
        self._go_on()

    def _failed(self, failure: Failure) -> None:
        self._is_busy = False
        if self._is_over:
            self._release()
            return
        failure.trap(ArchiveRefusedError, CutError, FileRefusedError, OSError, OutsideError)
        reason = str(failure.value) or "cannot be read"
        if self._exchange.status:
            self.cut(reason)
            return
        is_refused = failure.check(ArchiveRefusedError) is not None
        self._over(reason, is_recorded=True)
        status = HTTPStatus.FORBIDDEN if is_refused else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer.refuse(status, f"no archive: {reason}")

    def cut(self, reason: str) -> None:
        """Reset the connection: the client must not take the part for the whole."""
        self._over(reason)
        self._exchange.connection.abort()

    def _over(self, reason: str, *, is_recorded: bool = False) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._owner.sending.pop(self, None)
        if self._deadline.active():
            self._deadline.cancel()
        if not is_recorded:
            self._answer.ended(self._shown, reason, self._exchange.sent)
        if not self._is_busy:
            self._release()

    def _release(self) -> None:
        """Close the files. No thread uses them."""
        self._archive.close()
        self._root.close()
