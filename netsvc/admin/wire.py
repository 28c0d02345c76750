"""HTTP as the admin address speaks it: bounded in size, in time, and in how many ask at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ServerFactory
from twisted.web.http import HTTPChannel, Request

__all__ = ["AdminFactory", "AdminRequest"]

#: Connections at a time. Beyond it, the one that has waited longest for a request gives way.
MOST_CONNECTIONS = 64
#: Bytes of a request line with its headers, and of a body.
LONGEST_HEAD = 8192
LONGEST_BODY = 4096
MOST_HEADERS = 64
#: Seconds for a request to come whole; for it to be answered; for an answer to be taken, and another request to come.
REQUEST_TIME, ANSWER_TIME, IDLE_TIME = 10.0, 90.0, 60.0

#: What every answer says. The page runs nothing, shows nothing and asks nothing that does not come from here.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class AdminRequest(Request):
    """One request. The factory's `serve` is called with it, when it is there whole."""

    #: Whether its body was longer than `LONGEST_BODY`; then only its beginning is there.
    too_long = False
    #: Whether somebody waits for the answer.
    waiting = True
    channel: AdminChannel

    def __init__(self, channel: Any, _queued: object = None) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)

    def gotLength(self, length: int | None) -> None:
        """Make room for the body; Twisted would put a long one into a file."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Take a part of the body."""
        body: Any = self.content
        room = LONGEST_BODY - body.tell()
        self.too_long = self.too_long or len(data) > room
        body.write(data[:room])

    def process(self) -> None:
        """Have it answered."""
        self.notifyFinish().addBoth(self._gone)
        self.channel.factory.serve(self)

    def _gone(self, _result: object) -> None:
        self.waiting = False

    def head(self, code: int, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Set what stands before the body."""
        self.setResponseCode(code, HTTPStatus(code).phrase.encode("ascii"))
        for name, value in {**_HEADERS, "Content-Type": kind, **(headers or {})}.items():
            self.setHeader(name, value)

    def answer(self, code: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a body, unless nobody waits any more."""
        if not self.waiting:
            return
        if self.startedWriting:
            # A stream that has failed: its end says so.
            self.channel.abort()
            return
        self.head(code, kind, headers)
        self.setHeader("Content-Length", str(len(body)))
        self.write(body)
        self.finish()

    def answer_json(self, code: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an object. What peers have sent can break out of nothing: it is all ASCII."""
        self.answer(code, to_json(value) + b"\n", "application/json", headers)

    def fail(self, code: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer that it cannot be done, and why."""
        self.answer_json(code, {"error": line}, headers)


def to_json(value: object) -> bytes:
    """Write an object in a line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


class AdminChannel(HTTPChannel):
    """One connection."""

    requestFactory = AdminRequest  # type: ignore[assignment]
    totalHeadersSize = MAX_LENGTH = LONGEST_HEAD
    maxHeaders = MOST_HEADERS
    # There is one deadline, which a byte now and then does not put off.
    timeOut = None
    factory: AdminFactory
    transport: Any

    #: Whether a request is being answered.
    busy = False
    _deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.factory.channels[self] = None
        self._within(REQUEST_TIME)
        super().connectionMade()

    def allContentReceived(self) -> None:
        self.busy = True
        self._within(ANSWER_TIME)
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        self.busy = False
        # The order in which they stand is that in which they give way.
        if self.factory.channels.pop(self, self) is None:
            self.factory.channels[self] = None
            self._within(IDLE_TIME)
        super().requestDone(request)

    def pauseProducing(self) -> None:
        """Read nothing, and begin no answer, while the answers before it are not taken.

        Twisted goes on with the requests that it has read, hundreds of a few bytes each; and while one is being
        answered, it reads what comes behind it.
        """
        self.paused = True
        super().pauseProducing()
        self._networkProducer.pauseProducing()

    def resumeProducing(self) -> None:
        """Go on where it was paused."""
        self.paused = False
        super().resumeProducing()
        self._networkProducer.resumeProducing()
        self.dataReceived(b"")

    def go_on(self) -> None:
        """Give the answer all the time that it takes."""
        self._within(None)

    def abort(self) -> None:
        """Break the connection off."""
        self.transport.abortConnection()

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.factory.clock.callLater(seconds, self.abort)

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        self.factory.channels.pop(self, None)
        self._within(None)
        super().connectionLost(reason)


class AdminFactory(ServerFactory):
    """Makes the connections; `serve` answers each request, and must not raise."""

    protocol = AdminChannel  # type: ignore[assignment]
    noisy = False

    def __init__(self, clock: Any, serve: Callable[[AdminRequest], None]) -> None:
        self.clock = clock
        self.serve = serve
        #: Those that are open, the one that has waited longest first.
        self.channels: dict[AdminChannel, None] = {}

    def buildProtocol(self, addr: Any) -> AdminChannel | None:  # type: ignore[override]
        """Take one more, if there is room for it; see `MOST_CONNECTIONS`."""
        if len(self.channels) >= MOST_CONNECTIONS:
            idle = next((channel for channel in self.channels if not channel.busy), None)
            if idle is None:
                return None
            del self.channels[idle]
            idle.abort()
        channel = AdminChannel()
        channel.factory = self
        return channel

    def log(self, _request: Request) -> None:
        """Twisted calls this for each request; what changes something is logged where that is done."""

    def close(self) -> None:
        """Break off all connections."""
        for channel in list(self.channels):
            channel.abort()
