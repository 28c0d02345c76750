"""The chat in a browser: a page, and a WebSocket with the lines of IRC (ircv3.net/specs/extensions/websocket)."""

from __future__ import annotations

from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from twisted.internet.protocol import Protocol

from netsvc.http.connection import TEXT, Exchange, HTTPFactory, Times, header_lines
from netsvc.http.page import read_page
from netsvc.http.request import RequestLimits
from netsvc.http.websocket import WebSocketLimits, WebSocketLines, asks_for_websocket, upgrade
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.protocol import IrcChat

__all__ = ["web_factory"]

LIMITS = RequestLimits(target=1024, head=8192, headers=64)
TIMES = Times(request=10.0, answer=60.0, idle=30.0)
#: A line of IRC with tags has at most 8,191 bytes.
WEBSOCKET = WebSocketLimits(message=8192)
#: Names of subprotocols, and whether their messages are binary.
SUBPROTOCOLS = {"text.ircv3.net": False, "binary.ircv3.net": True}

_METHODS = "GET, HEAD, OPTIONS"
#: Headers of every answer. The page can load and connect to nothing outside this server.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def web_factory(core: ChatCore) -> HTTPFactory:
    """Return a factory of connections that get the page, or talk over a WebSocket."""
    factory = HTTPFactory(core.context.reactor, ChatSite(core).serve, limits=LIMITS, times=TIMES)
    core.drains.append(factory.drain)
    return factory


class ChatSite:
    """Answers the requests of browsers."""

    def __init__(self, core: ChatCore) -> None:
        self._core = core
        self._page = {
            path: (file.body, file.etag, header_lines({**_HEADERS, "Content-Type": file.kind, "ETag": file.etag}))
            for path, file in read_page("netsvc.services.chat").items()
        }

    def serve(self, exchange: Exchange) -> None:
        """Answer a request; see `HTTPFactory`."""
        request = exchange.request
        if asks_for_websocket(exchange):
            origins = self._core.options["web-origins"] or ()
            upgrade(exchange, self._build, subprotocols=SUBPROTOCOLS, origins=origins)
            return
        if request.method == b"OPTIONS":
            exchange.answer(HTTPStatus.NO_CONTENT, b"", header_lines({"Allow": _METHODS}))
            return
        if request.method not in (b"GET", b"HEAD"):
            self._refuse(exchange, HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": _METHODS})
            return
        found = self._page.get(request.path.decode("latin-1"))
        if found is None:
            self._refuse(exchange, HTTPStatus.NOT_FOUND, {})
            return
        body, etag, headers = found
        if request.header(b"if-none-match") == etag.encode():
            exchange.answer(HTTPStatus.NOT_MODIFIED, b"", headers)
        else:
            exchange.answer(HTTPStatus.OK, body, headers)

    def _build(self) -> WebSocketLines:
        protocol: Protocol = IrcChat()
        protocol.factory = _Origin(core=self._core)
        return WebSocketLines(protocol, WEBSOCKET)

    def _refuse(self, exchange: Exchange, status: HTTPStatus, headers: dict[str, str]) -> None:
        headers = {**_HEADERS, "Content-Type": TEXT, **headers}
        exchange.answer(status, f"{status.phrase.lower()}\n".encode(), header_lines(headers))


#: What a protocol needs of its factory.
_Origin: Any = SimpleNamespace
