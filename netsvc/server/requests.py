"""Records the requests of HTTP, where the access log is to have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netsvc.guard.counters import Book
from netsvc.plan.record import RequestRecord

if TYPE_CHECKING:
    # A process that serves no HTTP does not import it.
    from netsvc.http.connection import Exchange

#: As nginx says that the client has left before there was an answer.
LEFT = 499


def record_requests(factory: Any, book: Book) -> None:
    """Let a factory, if it is one of HTTP, record each request that has ended, if the book has requests."""
    if not book.has_requests or not hasattr(factory, "request_ended"):
        return

    def ended(exchange: Exchange) -> None:
        if book.record is not None:
            book.record(_record_of(exchange, factory.now()))

    factory.request_ended = ended


def _record_of(exchange: Exchange, now: float) -> RequestRecord:
    request = exchange.request
    line = b""
    if request.target:
        line = b"%b %b HTTP/%d.%d" % (request.method, exchange.target, *divmod(request.version, 10))
    return RequestRecord(
        now,
        str(getattr(exchange.peer, "host", None) or ""),
        exchange.user,
        line,
        int(exchange.status) or LEFT,
        exchange.sent,
        request.header(b"referer") or b"",
        request.header(b"user-agent") or b"",
    )
