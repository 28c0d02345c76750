"""The line protocol of the chat: for nc, telnet and every client that can send a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.hosts import peer_key
from netsvc.base.text import peer_name
from netsvc.services.chat.archive import UnsettledError
from netsvc.services.chat.commands import Conversation
from netsvc.services.chat.congestion import CongestedError
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.dialect import Dialect
from netsvc.services.chat.events import Event, Reason
from netsvc.services.chat.foreign import Opening
from netsvc.services.chat.lines import OVERLONG, LineSplitter, Overlong
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.text import edit
from netsvc.stream import is_confidential

__all__ = ["ARRIVAL", "LINGER", "QUIET", "TYPING", "LineChat", "Outbox"]

#: Seconds until the others are told of a client that sends nothing. One that speaks another protocol has sent its
#: first bytes by then.
ARRIVAL = 0.3
#: Seconds of silence after which a text is a line if its client has never ended one; the second number, if it came one
#: character at a time, as from someone who is typing.
QUIET, TYPING = 0.25, 30.0

#: Seconds that a client has, after we have closed our side, to read what was sent and to close its own.
LINGER = 5.0


@implementer(IPushProducer)
class Outbox:
    """Bounds what waits for one client. It is the transport's producer.

    `send` writes to the transport until its own buffer (64 KiB in Twisted) is full; from then on what is sent is held
    until the transport has sent everything. `filled` is called when it begins to hold, and `emptied` when it has
    stopped. If more than `limit` bytes are held, at least `patience` seconds after it began, the connection is
    aborted: `overflowed` is called just before, and everything sent afterwards is dropped. A client is not judged
    earlier: what waits says nothing about how fast it reads until the loop has written to the socket.
    """

    def __init__(
        self,
        transport: Any,
        clock: Any,
        *,
        limit: int,
        patience: float,
        filled: Callable[[], None],
        emptied: Callable[[], None],
        overflowed: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._limit = limit
        self._patience = patience
        self._filled = filled
        self._emptied = emptied
        self._overflowed = overflowed
        self._held: list[bytes] = []
        self._size = 0
        #: Whether it holds what is sent, and since when.
        self.full = False
        self._since = 0.0
        #: Sends bytes; never raises, never blocks. It is replaced as the transport fills and empties.
        self.send: Callable[[bytes], object] = transport.write
        transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Hold what is sent."""
        self.send = self._hold
        self.full = True
        self._since = self._clock.seconds()
        self._filled()

    def resumeProducing(self) -> None:
        """Send what was held."""
        # First, because this write may fill the transport again.
        self.send = self._transport.write
        self.full = False
        self._release()
        if not self.full:
            self._emptied()

    def stopProducing(self) -> None:
        """Drop everything from now on: the connection is gone."""
        self.send = _drop
        self._held.clear()

    def close(self, *, unread: bool) -> None:
        """Send what is held, and close the connection after it. Everything sent later is dropped.

        `unread`: the client may have sent what was not read. Closing then would reset the connection and lose what
        was just sent. Where the transport can, only our side is closed; the caller has
        to close the rest when the client has, or after some time.
        """
        self._release()
        self.send = _drop
        # A TLS transport closes only when it has no producer any more.
        self._transport.unregisterProducer()
        if unread and _half_closes(self._transport):
            self._transport.loseWriteConnection()
        else:
            self._transport.loseConnection()

    def _release(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held:
            self._transport.write(b"".join(held))

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size <= self._limit or self._clock.seconds() - self._since < self._patience:
            return
        self.stopProducing()
        self._overflowed()
        self._transport.abortConnection()


def _half_closes(transport: Any) -> bool:
    # A transport that wraps another, as TLS does, would pass the call on to the inner one.
    return hasattr(type(transport), "loseWriteConnection") and not getattr(transport, "TLS", False)


def _cancel(call: Any) -> Any:
    """Cancel a delayed call, if there is one; return None to keep in its place."""
    if call is not None and call.active():
        call.cancel()
    return None


def _drop(_data: bytes) -> None:
    """Drop data for a transport that is gone."""


@implementer(IHalfCloseableProtocol)
class LineChat(Protocol):
    """One client. It is the `Outlet` of its member."""

    transport: Any

    def connectionMade(self) -> None:
        """Enter the chat and greet the client, or refuse it."""
        self._core: ChatCore = self.factory.core
        self.peer = peer_key(getattr(self.transport.getPeer(), "host", ""))
        #: A reload changes the options of later clients only.
        self._options = options = self._core.options
        self._dialect = Dialect(options["encoding"])
        # Where 255 is a letter, it cannot begin a telnet sequence.
        self._lines = LineSplitter(options["line-bytes"], telnet=not b"\xff".decode(options["encoding"], "ignore"))
        #: The first line, until it is known whether it is one.
        self._opening = Opening(options["line-bytes"])
        self._line: bytes | Literal[Overlong.OVERLONG] | None = None
        #: Whether the rate admits that line.
        self._admitted = False
        self._paused = self._read_closed = self._closing = False
        self._resuming: Any = None
        self._lingering: Any = None
        #: The delayed calls of `_arrive` and of `_fell_silent`.
        self._arrival: Any = None
        self._silence: Any = None
        self._reason = Reason.ASKED
        clock, limit = self._core.context.reactor, options["send-bytes"]
        # As long as it takes until so much is sent to a client that reads nothing.
        patience = limit / options["send-rate"]
        self._outbox = Outbox(
            self.transport,
            clock,
            limit=limit,
            patience=patience,
            filled=self._fell_behind,
            emptied=self._caught_up,
            overflowed=self._overflowed,
        )
        self._conversation = Conversation(self._core, self, self._show)
        #: Whether it waits for the store to open, or for the answer to a command: it processes no line meanwhile.
        self._waiting = not self._core.archive.is_open
        if self._waiting:
            self._pause()
        self._core.archive.when_open(self._begin)

    def _begin(self) -> None:
        if self._closing:
            return
        try:
            self._conversation.begin()
        except ChatError as error:
            self._conversation.notice(str(error))
            self._close(unread=True)
            return
        self._arrival = self._core.context.reactor.callLater(ARRIVAL, self._arrive)
        if self._waiting:
            self._answered(None)

    def deliver(self, event: Event) -> None:
        """Send the line of an event."""
        form = self._dialect.form
        if self._conversation.view.is_plain:
            self._outbox.send(event.rendered.get(form) or form.render(event))
            return
        view = self._conversation.view
        if view.has_times:
            form = form.with_times
        if shown := view.select(event):
            self._outbox.send(b"".join([form.render(each) for each in shown]))

    @property
    def is_confidential(self) -> bool:
        """Whether no one else can read what the client sends."""
        return is_confidential(self.transport)

    def end(self) -> None:
        """Leave the chat, and close the connection after everything has been sent."""
        if not self._closing:
            self._close(unread=self._paused)

    def dataReceived(self, data: bytes) -> None:
        """Process the lines that are complete, as fast as the member's rate allows."""
        if self._closing:
            return
        self._silence = _cancel(self._silence)
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
        if self._resuming is None:
            self._work()

    def readConnectionLost(self) -> None:
        """Process the rest, a last line without an end included, and close."""
        if self._closing:
            self.transport.loseConnection()
            return
        if self._opening.open and (protocol := self._opening.end()):
            self._refuse(protocol)
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
        self._reason = self._reason or Reason.LOST
        self._depart()
        self._outbox.stopProducing()
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()

    def _work(self) -> None:
        """Process lines until there are no more, or the member has to wait: to read, for its rate, for others."""
        with self._core.delivery:
            while not self._closing and not self._waiting:
                if self._line is None:
                    self._line = self._lines.take()
                if self._line is None:
                    self._finished()
                    return
                if not self._conversation.arrived:
                    self._arrive()
                if self._outbox.full:
                    # Its answers would only add to what it does not read.
                    self._pause()
                    return
                if not self._admitted:
                    wait = self._core.wait(self._conversation.member)
                    if wait:
                        self._slow_down(wait)
                        return
                try:
                    answer = self._line_received(self._line)
                except CongestedError as congested:
                    self._admitted = True
                    self._pause()
                    self._core.congestion.wait(self._go_on, congested.receivers)
                    return
                except UnsettledError:
                    self._admitted = True
                    self._pause()
                    self._core.archive.wait(self._conversation.member, self._go_on)
                    return
                self._line = None
                self._admitted = False
                # One that has been called may wait for another one.
                if answer is not None and (answer.paused or not answer.called):
                    self._waiting = True
                    self._pause()
                    answer.addCallback(self._answered)

    def _answered(self, _result: object) -> None:
        self._waiting = False
        if not self._closing and self._resuming is None:
            self._work()

    def _fell_behind(self) -> None:
        if not self._closing:
            self._core.congestion.fell_behind(self._conversation.member)

    def _caught_up(self) -> None:
        if self._closing:
            return
        self._core.congestion.caught_up(self._conversation.member)
        if self._line is not None and self._resuming is None:
            # Later: the transport is in the middle of writing.
            self._resuming = self._core.context.reactor.callLater(0, self._resume)

    def _arrive(self) -> None:
        self._arrival = _cancel(self._arrival)
        self._conversation.arrive()

    def _finished(self) -> None:
        if self._read_closed:
            member = self._conversation.member
            if member.unsettled:
                # It must hear of what cannot be kept.
                self._core.archive.wait(member, self._go_on)
            else:
                self.end()
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        if self._lines.unended and not self._lines.ended:
            # Its client may be one that never ends a line.
            seconds = TYPING if self._lines.typed else QUIET
            self._silence = self._core.context.reactor.callLater(seconds, self._fell_silent)

    def _fell_silent(self) -> None:
        if self._opening.open and (protocol := self._opening.end()):
            self._refuse(protocol)
            return
        self._lines.end_line()
        if self._resuming is None:
            self._work()

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

    def _slow_down(self, wait: float) -> None:
        """Stop reading, and continue here when the member may act again."""
        self._resuming = self._core.context.reactor.callLater(wait, self._resume)
        self._pause()
        # Otherwise a client that sends far more than its rate would stay for hours, even after it has gone.
        if self._lines.waiting() > (backlog := self._options["backlog"]):
            self._conversation.notice(f"too many lines: more than {backlog} are waiting to be sent; goodbye")
            self._reason = Reason.FLOODING
            self.end()
            return
        if self._conversation.member.slowed == 1:
            rate = self._options["rate"]
            self._conversation.notice(f"you are sending fast: your lines go out at {rate:g} a second now; none is lost")

    def _pause(self) -> None:
        # Resuming a transport that has reached its end would report the end again.
        if not self._paused and not self._read_closed:
            self._paused = True
            self.transport.pauseProducing()

    def _resume(self) -> None:
        self._resuming = None
        self._work()

    def _go_on(self) -> None:
        if self._resuming is None:
            self._work()

    def _line_received(self, line: bytes | Literal[Overlong.OVERLONG]) -> Deferred[None] | None:
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
        if self._conversation.over:
            self.end()
        return answer

    def _show(self, lines: Iterable[str]) -> None:
        self._outbox.send(self._dialect.form.encode(lines))

    def _overflowed(self) -> None:
        # Leave the chat when the connection is lost, not in the middle of a delivery.
        self._reason = Reason.TOO_SLOW
        self._stop()

    def _depart(self) -> None:
        self._stop()
        self._conversation.end(self._reason)

    def _close(self, *, unread: bool) -> None:
        self._depart()
        # A client that reads nothing would keep its connection for ever, without counting as a member.
        self._lingering = self._core.context.reactor.callLater(LINGER, self.transport.abortConnection)
        if self._paused:
            # What the client sends is dropped now. TLS closes with an exchange of messages, which must be read.
            self.transport.resumeProducing()
        self._outbox.close(unread=unread)

    def _stop(self) -> None:
        self._closing = True
        self._arrival, self._silence = _cancel(self._arrival), _cancel(self._silence)
        self._core.congestion.forget(self._go_on)
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
