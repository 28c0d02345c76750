"""The line protocol of the chat: for nc, telnet and every client that can send a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from twisted.internet.defer import Deferred

from netsvc.base.text import peer_name
from netsvc.services.chat.commands import Conversation
from netsvc.services.chat.connection import ChatConnection, cancel
from netsvc.services.chat.dialect import Dialect
from netsvc.services.chat.events import Event, Reason
from netsvc.services.chat.foreign import Opening
from netsvc.services.chat.lines import OVERLONG, LineSplitter, Overlong
from netsvc.services.chat.room import Member
from netsvc.services.chat.text import edit

__all__ = ["ARRIVAL", "QUIET", "TYPING", "LineChat"]

#: Seconds until the others are told of a client that sends nothing. One that speaks another protocol has sent its
#: first bytes by then.
ARRIVAL = 0.3
#: Seconds of silence after which a text is a line if its client has never ended one; the second number, if it came one
#: character at a time, as from someone who is typing.
QUIET, TYPING = 0.25, 30.0


class LineChat(ChatConnection[bytes | Literal[Overlong.OVERLONG]]):
    """One client of the line protocol."""

    def _prepare(self) -> None:
        options = self._options
        self._dialect = Dialect(options["encoding"])
        # Where 255 is a letter, it cannot begin a telnet sequence.
        self._lines = LineSplitter(options["line-bytes"], telnet=not b"\xff".decode(options["encoding"], "ignore"))
        #: The first line, until it is known whether it is one.
        self._opening = Opening(options["line-bytes"])
        #: The delayed calls of `_arrive` and of `_fell_silent`.
        self._arrival: Any = None
        self._silence: Any = None
        self._conversation = Conversation(self._core, self, self._show)
        self._adapt()

    def _greet(self) -> None:
        """Enter the chat and greet the client."""
        self._conversation.begin()
        self._arrival = self._core.context.reactor.callLater(ARRIVAL, self._arrive)

    @property
    def _member(self) -> Member:
        return self._conversation.member

    def deliver(self, event: Event) -> None:
        """Send of an event what the member wants to see."""
        view, form = self._conversation.view, self._dialect.form
        if view.has_times:
            form = form.with_times
        events = [event] if view.is_plain else view.select(event)
        # Some events have no line.
        if data := b"".join([form.render(each) for each in events]):
            self._outbox.send_event(data)

    def _adapt(self) -> None:
        """Note the form in which events are sent as they are, if they are."""
        self._outbox.form = self._dialect.form if self._conversation.view.is_plain else None

    def dataReceived(self, data: bytes) -> None:
        """Process the lines that are complete, as fast as the member's rate allows."""
        if self._closing:
            return
        self._silence = cancel(self._silence)
        if self._opening.open and (protocol := self._opening.feed(data)):
            self._refuse(protocol)
            return
        answers = self._lines.feed(data)
        if self._lines.flooded:
            self._reason = Reason.FLOODING
            self.end()
            return
        if answers:
            self._outbox.send(answers)
        self._dialect.adopt(self._lines.line_end, self._lines.wide)
        self._adapt()
        self.work()

    def readConnectionLost(self) -> None:
        """Process the rest, a last line without an end included, and close."""
        if not self._closing:
            if self._opening.open and (protocol := self._opening.end()):
                self._refuse(protocol)
                return
            self._lines.finish()
        super().readConnectionLost()

    def _take(self) -> bytes | Literal[Overlong.OVERLONG] | None:
        return self._lines.take()

    def _count_waiting(self) -> int:
        return self._lines.waiting()

    def _wait(self) -> float:
        if not self._conversation.arrived:
            self._arrive()
        return self._core.wait(self._conversation.member)

    def _arrive(self) -> None:
        self._arrival = cancel(self._arrival)
        self._conversation.arrive()

    def _took_all(self) -> None:
        if self._lines.unended and not self._lines.ended:
            # Its client may be one that never ends a line.
            seconds = TYPING if self._lines.typed else QUIET
            self._silence = self._core.context.reactor.callLater(seconds, self._fell_silent)

    def _fell_silent(self) -> None:
        if self._opening.open and (protocol := self._opening.end()):
            self._refuse(protocol)
            return
        self._lines.end_line()
        self.work()

    def _refuse(self, protocol: str) -> None:
        """Close a connection that speaks another protocol. No one has been told of it, unless it was silent before."""
        core = self._core
        now = core.context.reactor.seconds()
        if not core.foreign.wait(1, now):
            core.foreign.take(1, now)
            cure = "; put proxy: before the address" if protocol == "PROXY" else ""
            core.context.log.info(
                "chat client {peer} disconnected: it speaks {protocol}, not lines{cure}",
                peer=peer_name(self.transport.getPeer()),
                protocol=protocol,
                cure=cure,
            )
        self._conversation.notice(f"this is a chat for lines of text, and does not speak {protocol}; goodbye")
        self._reason = Reason.FOREIGN
        self._close(unread=True)

    def _process(self, line: bytes | Literal[Overlong.OVERLONG]) -> Deferred[None] | None:
        if line is OVERLONG:
            limit = self._options["line-bytes"]
            self._conversation.notice(f"line not sent: it is longer than {limit} bytes")
            return None
        before = self._dialect.encoding
        text = edit(self._dialect.read(line))
        now = self._dialect.encoding
        if now != before:
            self._conversation.notice(f"you write {now}; from now on you get {now}, too")
        answer = self._conversation.line_received(text)
        self._adapt()
        if self._conversation.over:
            self.end()
        return answer

    def _show(self, lines: Iterable[str]) -> None:
        self._outbox.send(self._dialect.form.encode(lines))

    def _tell(self, text: str) -> None:
        self._conversation.notice(text)

    def _depart(self, reason: Reason) -> None:
        self._conversation.end(reason)

    def _stop(self) -> None:
        self._arrival, self._silence = cancel(self._arrival), cancel(self._silence)
        super()._stop()
