"""The HTTP server of the admin address: its bounds, and the headers of its answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from netsvc.http.connection import Exchange, HTTPFactory, Times, header_lines
from netsvc.http.request import RequestError, RequestLimits

#: Simultaneous connections. Beyond it, the one that has been idle longest is closed.
MOST_CONNECTIONS = 64
LIMITS = RequestLimits(target=4096, head=8192, headers=64, body=4096)
TIMES = Times(request=10.0, answer=90.0, idle=60.0)

#: Headers of every answer. The page can load and connect to nothing outside this server.
_HEADERS = header_lines(
    {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)


class AdminExchange(Exchange):
    """A request to the admin address and its answer."""

    __slots__ = ()

    def reply(self, code: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer, unless the client has gone."""
        self.answer(code, body, _head(kind, headers))

    def reply_json(self, code: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Send an object as JSON, in ASCII: nothing that peers have sent can affect a terminal or a page."""
        self.reply(code, to_json(value) + b"\n", "application/json", headers)

    def fail(self, code: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an error with its reason."""
        self.reply_json(code, {"error": line}, headers)

    def stream(self, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Begin an answer that lasts as long as the client wants."""
        self.start(HTTPStatus.OK, _head(kind, headers))
        self.connection.go_on()


def _head(kind: str, headers: Mapping[str, str] | None) -> bytes:
    return _HEADERS + header_lines({"Content-Type": kind, **(headers or {})})


def to_json(value: object) -> bytes:
    """Write an object as one line of JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


class AdminFactory(HTTPFactory):
    """Accepts connections; `serve` answers each request and must not raise."""

    exchange = AdminExchange

    def __init__(self, clock: Any, serve: Callable[[Any], None]) -> None:
        super().__init__(clock, serve, limits=LIMITS, times=TIMES, most=MOST_CONNECTIONS)

    def refuse(self, exchange: Any, error: RequestError) -> None:
        """Answer what is no request."""
        exchange.fail(error.status, error.line)
