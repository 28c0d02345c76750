"""What the chat's stream protocols have in common: lines read as fast as a member may act, bounded answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.hosts import peer_key
from netsvc.services.chat.archive import UnsettledError
from netsvc.services.chat.congestion import CongestedError
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Event, Reason, Receiver
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.room import Member
from netsvc.stream import is_confidential

__all__ = ["LINGER", "ChatConnection", "Outbox", "cancel"]

L = TypeVar("L")

#: Seconds that a client has, after we have closed our side, to read what was sent and to close its own.
LINGER = 5.0


@implementer(IPushProducer)
class Outbox(Receiver):
    """Bounds what waits for one client, whose `Receiver` it is. It is the transport's producer.

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
        take: Callable[[Event], None],
        limit: int,
        patience: float,
        filled: Callable[[], None],
        emptied: Callable[[], None],
        overflowed: Callable[[], None],
    ) -> None:
        super().__init__(take)
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
        # The fast reactor's transports have it. Asked of the class: a wrapper, such as TLS, passes on the attributes of
        # the transport below, which would send in plain text.
        is_direct = hasattr(type(transport), "write_at_once")
        self._send_event: Callable[[bytes], object] = transport.write_at_once if is_direct else transport.write
        #: Send an answer, and an event that many others are sent as well; never raise, never block. They are replaced
        #: as the transport fills and empties.
        self.send: Callable[[bytes], object] = transport.write
        self.send_event = self._send_event
        transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Hold what is sent."""
        self.send = self.send_event = self._hold
        self.full = True
        self._since = self._clock.seconds()
        self._filled()

    def resumeProducing(self) -> None:
        """Send what was held."""
        # First, because this write may fill the transport again.
        self.send, self.send_event = self._transport.write, self._send_event
        self.full = False
        self._release()
        if not self.full:
            self._emptied()

    def stopProducing(self) -> None:
        """Drop everything from now on: the connection is gone."""
        self.send = self.send_event = _drop
        self._held.clear()

    def close(self, *, unread: bool) -> None:
        """Send what is held, and close the connection after it. Everything sent later is dropped.

        `unread`: the client may have sent what was not read. Closing then would reset the connection and lose what
        was just sent. Where the transport can, only our side is closed; the caller has
        to close the rest when the client has, or after some time.
        """
        self._release()
        self.send = self.send_event = _drop
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


def cancel(call: Any) -> Any:
    """Cancel a delayed call, if there is one; return None to keep in its place."""
    if call is not None and call.active():
        call.cancel()
    return None


def _drop(_data: bytes) -> None:
    """Drop data for a transport that is gone."""


@implementer(IHalfCloseableProtocol)
class ChatConnection(Protocol, Generic[L]):
    """One client, of any wire form with lines. It is the `Outlet` of its member.

    It takes lines as fast as the member's rate allows, while its answers are read and those whom it sends to are not
    behind, and one at a time: a line whose answer is a Deferred is answered before the next one is taken. A wire form
    feeds what arrives to its own splitter and calls `work`; it provides the methods that raise `NotImplementedError`.
    """

    transport: Any

    def connectionMade(self) -> None:
        """Begin when the store is open."""
        self._core: ChatCore = self.factory.core
        self.peer = peer_key(getattr(self.transport.getPeer(), "host", ""))
        #: A reload changes the options of later clients only.
        self._options = options = self._core.options
        #: The line that is next, once it was taken.
        self._line: L | None = None
        #: Whether the rate admits that line.
        self._admitted = False
        self._paused = self._read_closed = self._closing = False
        self._resuming: Any = None
        self._lingering: Any = None
        self._reason = Reason.ASKED
        clock, limit = self._core.context.reactor, options["send-bytes"]
        # As long as it takes until so much is sent to a client that reads nothing.
        patience = limit / options["send-rate"]
        self._outbox = Outbox(
            self.transport,
            clock,
            take=self.deliver,
            limit=limit,
            patience=patience,
            filled=self._fell_behind,
            emptied=self._caught_up,
            overflowed=self._overflowed,
        )
        self.receiver: Receiver = self._outbox
        self._prepare()
        #: Whether it waits for the store to open, or for the answer to a command: it processes no line meanwhile.
        self._waiting = not self._core.archive.is_open
        if self._waiting:
            self._pause()
        self._core.archive.when_open(self._begin)

    def deliver(self, event: Event) -> None:
        """Send the lines of an event."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Create what the wire form needs for a client."""
        raise NotImplementedError

    def _greet(self) -> None:
        """Begin the conversation. Raises `ChatError` if the client is refused."""
        raise NotImplementedError

    @property
    def _member(self) -> Member | None:
        """The member that the client is, if it is one already."""
        raise NotImplementedError

    def _take(self) -> L | None:
        """Return the next line that is complete."""
        raise NotImplementedError

    def _count_waiting(self) -> int:
        """Return the number of lines that are complete and not taken."""
        raise NotImplementedError

    def _wait(self) -> float:
        """Count one line against the client's rate, and return 0.0; or return the seconds until it may be processed."""
        raise NotImplementedError

    def _process(self, line: L) -> Deferred[None] | None:
        """Do what a line says. May raise `CongestedError` or `UnsettledError`, having done nothing."""
        raise NotImplementedError

    def _tell(self, text: str) -> None:
        """Show a line of the server's."""
        raise NotImplementedError

    def _depart(self, reason: Reason) -> None:
        """End the membership, if there is one."""
        raise NotImplementedError

    def _took_all(self) -> None:
        """Note that no complete line is left."""

    def _begin(self) -> None:
        if self._closing:
            return
        try:
            self._greet()
        except ChatError as error:
            self._tell(str(error))
            self._close(unread=True)
            return
        if self._waiting:
            self._answered(None)

    @property
    def is_confidential(self) -> bool:
        """Whether no one else can read what the client sends."""
        return is_confidential(self.transport)

    @property
    def is_encrypted(self) -> bool:
        """Whether the client uses TLS."""
        return hasattr(self.transport, "getPeerCertificate")

    def end(self) -> None:
        """Leave the chat, and close the connection after everything has been sent."""
        if not self._closing:
            self._close(unread=self._paused)

    def writeConnectionLost(self) -> None:
        """Close: nothing can be sent any more."""
        self.end()

    def readConnectionLost(self) -> None:
        """Process the rest, and close."""
        if self._closing:
            self.transport.loseConnection()
            return
        self._read_closed = True
        self.work()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave the chat."""
        self._reason = self._reason or Reason.LOST
        self._leave()
        self._outbox.stopProducing()
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()

    def work(self) -> None:
        """Process lines, unless the client has to wait."""
        if self._resuming is None:
            self._work()

    def _work(self) -> None:
        """Process lines until there are no more, or the member has to wait: to read, for its rate, for others."""
        with self._core.delivery:
            while not self._closing and not self._waiting:
                if self._line is None:
                    self._line = self._take()
                if self._line is None:
                    self._finished()
                    return
                if self._outbox.full:
                    # Its answers would only add to what it does not read.
                    self._pause()
                    return
                if not self._admitted:
                    wait = self._wait()
                    if wait:
                        self._slow_down(wait)
                        return
                try:
                    answer = self._process(self._line)
                except CongestedError as congested:
                    self._admitted = True
                    self._pause()
                    self._core.congestion.wait(self.work, congested.receivers)
                    return
                except UnsettledError:
                    self._admitted = True
                    self._pause()
                    assert self._member is not None
                    self._core.archive.wait(self._member, self.work)
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
        if not self._closing and self._member is not None:
            self._core.congestion.fell_behind(self._member)

    def _caught_up(self) -> None:
        if self._closing:
            return
        if self._member is not None:
            self._core.congestion.caught_up(self._member)
        if self._line is not None and self._resuming is None:
            # Later: the transport is in the middle of writing.
            self._resuming = self._core.context.reactor.callLater(0, self._resume)

    def _finished(self) -> None:
        if self._read_closed:
            member = self._member
            if member is not None and member.unsettled:
                # It must hear of what cannot be kept.
                self._core.archive.wait(member, self.work)
            else:
                self.end()
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        self._took_all()

    def _slow_down(self, wait: float) -> None:
        """Stop reading, and continue here when the member may act again."""
        self._resuming = self._core.context.reactor.callLater(wait, self._resume)
        self._pause()
        # Otherwise a client that sends far more than its rate would stay for hours, even after it has gone.
        if self._count_waiting() > (backlog := self._options["backlog"]):
            self._tell(f"too many lines: more than {backlog} are waiting to be sent; goodbye")
            self._reason = Reason.FLOODING
            self.end()
            return
        if self._member is not None and self._member.slowed == 1:
            rate = self._options["rate"]
            self._tell(f"you are sending fast: your lines go out at {rate:g} a second now; none is lost")

    def _pause(self) -> None:
        # Resuming a transport that has reached its end would report the end again.
        if not self._paused and not self._read_closed:
            self._paused = True
            self.transport.pauseProducing()

    def _resume(self) -> None:
        self._resuming = None
        self._work()

    def _overflowed(self) -> None:
        # Leave the chat when the connection is lost, not in the middle of a delivery.
        self._reason = Reason.TOO_SLOW
        self._stop()

    def _leave(self) -> None:
        self._stop()
        self._depart(self._reason)

    def _close(self, *, unread: bool) -> None:
        self._leave()
        # A client that reads nothing would keep its connection for ever, without counting as a member.
        self._lingering = self._core.context.reactor.callLater(LINGER, self.transport.abortConnection)
        if self._paused:
            # What the client sends is dropped now. TLS closes with an exchange of messages, which must be read.
            self.transport.resumeProducing()
        self._outbox.close(unread=unread)

    def _stop(self) -> None:
        self._closing = True
        self._core.congestion.forget(self.work)
        self._resuming = cancel(self._resuming)
