"""Chat over a stream of lines, for nc, telnet and whoever can send a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.services.chat.conversation import Conversation
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.dialect import Dialect
from netsvc.services.chat.events import Event
from netsvc.services.chat.lines import OVERLONG, LineSplitter, Overlong
from netsvc.services.chat.outbox import Outbox
from netsvc.services.chat.refusal import RefusedError

__all__ = ["LINGER", "LineChat"]

#: Seconds that a client has, after the chat is done with it, to take what is on its way and to close its side.
LINGER = 5.0


@implementer(IHalfCloseableProtocol)
class LineChat(Protocol):
    """One client, and the outlet of its member."""

    transport: Any

    def connectionMade(self) -> None:
        """Greet, if there is a place in the chat."""
        self._core: ChatCore = self.factory.core
        #: Those of the time when it came: a reload may change them.
        self._options = options = self._core.options
        self._dialect = Dialect(options["encoding"])
        # Where 255 is a letter, it cannot begin a telnet sequence.
        self._lines = LineSplitter(options["line-bytes"], telnet=not b"\xff".decode(options["encoding"], "ignore"))
        self._line: bytes | Literal[Overlong.OVERLONG] | None = None
        self._paused = self._read_closed = self._closing = False
        self._resuming: Any = None
        self._lingering: Any = None
        self._reason = ""
        self._outbox = Outbox(self.transport, options["send-bytes"], self._overflowed)
        self._conversation = Conversation(self._core, self, self._tell)
        try:
            self._conversation.begin()
        except RefusedError as error:
            self._conversation.notice(str(error))
            self._close(unread=True)

    def deliver(self, event: Event) -> None:
        """Send an event's line."""
        form = self._dialect.form
        self._outbox.send(event.rendered.get(form) or form.render(event))

    def end(self) -> None:
        """Leave the chat, and close the connection once everything is out."""
        if not self._closing:
            self._close(unread=self._paused)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, and do what the lines among them say."""
        if self._closing:
            return
        answers = self._lines.feed(data)
        if self._lines.flooded:
            self._reason = "flooding"
            self.end()
            return
        if answers:
            self._outbox.send(answers)
        if self._resuming is None:
            self._work()

    def readConnectionLost(self) -> None:
        """Do what is still to be done, a last line without an end included, and close."""
        if self._closing:
            self.transport.loseConnection()
            return
        self._read_closed = True
        self._lines.finish()
        if self._resuming is None:
            self._work()

    def writeConnectionLost(self) -> None:
        """Close: nothing can be sent any more."""
        self.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the chat."""
        self._reason = self._reason or "connection lost"
        self._depart()
        self._outbox.stopProducing()
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()

    def _work(self) -> None:
        """Do what the lines say, as fast as the member may."""
        with self._core.telling:
            while not self._closing:
                if self._line is None:
                    self._line = self._lines.take()
                if self._line is None:
                    self._caught_up()
                    return
                wait = self._core.wait(self._conversation.member)
                if wait:
                    self._slow_down(wait)
                    return
                line, self._line = self._line, None
                self._line_received(line)

    def _caught_up(self) -> None:
        if self._read_closed:
            self.end()
        elif self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def _slow_down(self, wait: float) -> None:
        """Stop reading, and go on where we are when the member may."""
        self._resuming = self._core.context.reactor.callLater(wait, self._resume)
        # To resume the reading of a transport that has reached its end would reach it again.
        if not self._paused and not self._read_closed:
            self._paused = True
            self.transport.pauseProducing()
        # Whoever sends more than will ever be read would stay for hours, gone or not.
        if self._lines.waiting() > (backlog := self._options["backlog"]):
            self._conversation.notice(f"that was too much: more than {backlog} of your lines wait; goodbye")
            self._reason = "flooding"
            self.end()
            return
        if self._conversation.member.bucket.refused == 1:
            rate = self._options["rate"]
            self._conversation.notice(f"that was fast: your lines go out at {rate:g} a second now, and none is lost")

    def _resume(self) -> None:
        self._resuming = None
        self._work()

    def _line_received(self, line: bytes | Literal[Overlong.OVERLONG]) -> None:
        if self._lines.ends_with_return:
            self._dialect.end_with_return()
        if line is OVERLONG:
            limit = self._options["line-bytes"]
            self._conversation.notice(f"that line was not sent: it has more than {limit} bytes")
            return
        before = self._dialect.encoding
        text = self._dialect.read(line)
        now = self._dialect.encoding
        if now != before:
            self._conversation.notice(f"you write {now}, so you are answered in {now} from now on")
        self._conversation.line_received(text)
        if self._conversation.over:
            self.end()

    def _tell(self, lines: Iterable[str]) -> None:
        self._outbox.send(self._dialect.form.encode(lines))

    def _overflowed(self) -> None:
        # The core is told when the connection is lost, and not in the middle of a delivery.
        self._reason = "too slow to read"
        self._stop()

    def _depart(self) -> None:
        self._stop()
        self._conversation.end(self._reason)

    def _close(self, *, unread: bool) -> None:
        self._depart()
        # A client that takes nothing would keep its connection for ever, and not count as a member.
        self._lingering = self._core.context.reactor.callLater(LINGER, self.transport.abortConnection)
        if self._paused:
            # What the client sends is dropped now; and TLS closes with an exchange of messages.
            self.transport.resumeProducing()
        self._outbox.close(unread=unread)

    def _stop(self) -> None:
        self._closing = True
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
