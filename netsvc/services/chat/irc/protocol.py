"""The IRC protocol over a stream."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from netsvc.services.chat.connection import ChatConnection, cancel
from netsvc.services.chat.events import Event, Reason
from netsvc.services.chat.foreign import foreign_protocol
from netsvc.services.chat.irc.commands import run
from netsvc.services.chat.irc.message import IrcMessage, IrcMessageError, MessageSplitter, format_message, parse_message
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.room import Member

__all__ = ["IrcChat"]

#: Seconds until a client must be registered.
REGISTRATION = 60


class IrcChat(ChatConnection[IrcMessage | IrcMessageError]):
    """One client of IRC."""

    def _prepare(self) -> None:
        self._splitter = MessageSplitter()
        self._is_fresh = True
        self._unregistered: Any = None
        self.session = IrcSession(self._core, self, self._outbox)

    def _greet(self) -> None:
        self._unregistered = self._core.context.reactor.callLater(REGISTRATION, self._registration_failed)

    @property
    def _member(self) -> Member | None:
        return self.session.member

    def deliver(self, event: Event) -> None:
        """Send the lines of an event."""
        self.session.deliver(event)

    def dataReceived(self, data: bytes) -> None:
        """Process the lines that are complete, as fast as the member's rate allows."""
        if self._closing:
            return
        if self._is_fresh:
            self._is_fresh = False
            if foreign_protocol(data) not in {None, "IRC"}:
                self._reason = Reason.FOREIGN
                self.end()
                return
        self._splitter.feed(data)
        self.work()

    def readConnectionLost(self) -> None:
        """Process the rest, and close."""
        self._splitter.finish()
        super().readConnectionLost()

    def _take(self) -> IrcMessage | IrcMessageError | None:
        if not self._splitter:
            return None
        try:
            return parse_message(self._splitter.take())
        except IrcMessageError as error:
            return error

    def _count_waiting(self) -> int:
        return len(self._splitter)

    def _wait(self) -> float:
        member = self.session.member
        if member is not None:
            return self._core.wait(member)
        now, bucket = self._core.context.reactor.seconds(), self.session.bucket
        wait = bucket.wait(1, now)
        if not wait:
            bucket.take(1, now)
        return wait

    def _process(self, line: IrcMessage | IrcMessageError) -> Deferred[None] | None:
        answer = run(self.session, line)
        if self.session.member is not None and self._unregistered is not None:
            self._unregistered = cancel(self._unregistered)
        if self.session.over:
            self.end()
        return answer

    def _registration_failed(self) -> None:
        self._tell("registration took too long")
        self.end()

    def _tell(self, text: str) -> None:
        if self.session.member is not None and not self._closing:
            self.session.notice(text)
        else:
            self._outbox.send(f"{format_message('ERROR', f'Closing link: {text}')}\r\n".encode())

    def _depart(self, reason: Reason) -> None:
        self.session.end(reason, self.session.farewell)

    def _stop(self) -> None:
        self._unregistered = cancel(self._unregistered)
        super()._stop()
