"""The requests that the admin address answers: the page, health, metrics and the API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.admin import status
from netsvc.admin.http import AdminExchange
from netsvc.admin.permission import Permission
from netsvc.admin.status import COUNTS, Sample, TooManySamplesError
from netsvc.admin.stream import MOST_WATCHERS, EventStream
from netsvc.base.hosts import peer_key
from netsvc.base.text import escape, peer_name
from netsvc.guard.refusals import Refusals
from netsvc.http.page import PageFile, read_page
from netsvc.http.request import Request
from netsvc.plan.answer import Answer
from netsvc.plan.status import MOST_SHOWN, ORDERS, ConnectionQuery, ListenerStatus, ProcessStatus
from netsvc.server.interface import Operations

#: Requests and their answers; docs/reference/admin.md has this table.
PATHS: Mapping[str, str] = {
    "GET /": "the live page",
    "GET /health": "`ok` while the event loop runs",
    "GET /ready": "`ready`; or status 503 and a line for each reason why not: a listener that is down, a drain",
    "GET /metrics": "the metrics, for Prometheus",
    "GET /api/status": "processes, totals, listeners, connections and refusals. "
    "`connections=N` limits the connections (100, at most 500), `order=` is rate, bytes, age or new, "
    "`words=` selects those that contain all words",
    "GET /api/listeners": "the listeners, with their counts and limits",
    "GET /api/connections": "connections and UDP sessions; same parameters as `/api/status`",
    "GET /api/limits": "the limits in force, by listener",
    "GET /api/refusals": "the last refusals, newest first",
    "GET /api/history": "the last five minutes, a point every second or two: open connections, and rates",
    "GET /api/stream": "server-sent events: `history` and `limits`, then `status` every second",
    "POST /api/connections/ID/close": "closes a connection, or forgets a UDP session",
    "POST /api/drain": "drains and stops, as `netsvc drain`",
    "POST /api/reload": "reloads the configuration, as `netsvc reload`",
    "POST /api/upgrade": "upgrades to the installed version, as `netsvc upgrade`",
}

#: Seconds to wait for the result of a command before the answer is 202.
PATIENCE = 5.0
#: Words to search for, and characters of all of them.
MOST_WORDS, LONGEST_WORDS = 8, 200
_MOST_PARAMETERS = 10

#: Writes the metrics; returns a body and its content type: `netsvc.admin.exposition.exposition`.
Exposition = Callable[
    [Sequence[ProcessStatus], Sequence[ListenerStatus], str, Sequence[Sequence[dict[str, Any]]]], tuple[bytes, str]
]

_TEXT = "text/plain; charset=utf-8"
_CLOSE = re.compile(r"/api/connections/([0-9A-Za-z.:-]{1,64})/close")
_JSON = re.compile(r"application/json\s*(;.*)?", re.IGNORECASE)

_log = Logger(namespace="netsvc.admin")


class _HTTPError(Exception):
    """An error answer: status code, one line of text, and optional headers."""


class AdminAPI:
    """Answers requests. No request delays another."""

    def __init__(
        self,
        clock: Any,
        operations: Operations,
        exposition: Exposition,
        permission: Permission,
        stream: EventStream,
    ) -> None:
        self._clock = clock
        self._operations = operations
        self._exposition = exposition
        self._permission = permission
        self._samples = stream.samples
        self._stream = stream
        self._page = read_page("netsvc.admin")
        #: Wrong tokens, logged once a second.
        self._guesses = Refusals(clock)
        self._reads: Mapping[str, Callable[[AdminExchange], object]] = {
            **{path: partial(_show_file, file) for path, file in self._page.items()},
            "/health": lambda exchange: exchange.reply(HTTPStatus.OK, b"ok\n", _TEXT),
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/api/status": self._status,
            "/api/listeners": self._sampled("listeners", status.listeners),
            "/api/connections": self._connections,
            "/api/limits": self._sampled("limits", status.limits),
            "/api/refusals": self._sampled("refusals", status.refusals),
            "/api/history": lambda exchange: exchange.reply_json(
                HTTPStatus.OK, {"history": list(stream.history.points)}
            ),
            "/api/stream": self._events,
        }
        self._writes: Mapping[str, Callable[[Sequence[str]], Deferred[Answer]]] = {
            "/api/drain": operations.drain,
            "/api/reload": operations.reread,
            "/api/upgrade": operations.upgrade,
        }

    def serve(self, exchange: AdminExchange) -> None:
        """Answer a request. Never raises."""
        maybeDeferred(self._serve, exchange).addErrback(_failed, exchange)

    def _serve(self, exchange: AdminExchange) -> object:
        request = exchange.request
        path = request.path.decode("utf-8", "replace")
        asks = request.method == b"OPTIONS"
        reads = asks or request.method in (b"GET", b"HEAD")
        public = reads and (path in self._page or path == "*")
        refusal = self._permission.refuse(request, reads=reads, public=public)
        if refusal is not None:
            if refusal.code == HTTPStatus.UNAUTHORIZED and self._permission.guesses(request):
                self._guesses.add("admin", "token", peer_key(getattr(exchange.peer, "host", None) or ""))
            headers = {"WWW-Authenticate": "Bearer"} if refusal.code == HTTPStatus.UNAUTHORIZED else {}
            raise _HTTPError(*refusal, headers)
        closes = _CLOSE.fullmatch(path)
        read = self._reads.get(path)
        writes = closes is not None or path in self._writes
        if read is None and not writes and path != "*":
            raise _HTTPError(HTTPStatus.NOT_FOUND, "no such path; docs/reference/admin.md lists all of them")
        methods = [*(("GET", "HEAD") if not writes else ()), *(("POST",) if read is None else ()), "OPTIONS"]
        if asks and path != "/ready":
            exchange.reply(HTTPStatus.OK, b"", _TEXT, {"Allow": ", ".join(methods)})
            return None
        if request.method.decode("latin-1") not in methods:
            raise _wrong_method(methods)
        if read is not None:
            return read(exchange)
        _check_body(request)
        if closes is not None:
            return self._close(exchange, closes[1])
        self._command(exchange, path)
        return None

    def close(self) -> None:
        """Log the remaining wrong tokens."""
        self._guesses.close()

    def _ready(self, exchange: AdminExchange) -> None:
        lines = self._operations.not_ready()
        if lines:
            # It may name a UNIX socket, whose path can have any character.
            body = "".join(f"{escape(line, 1000)}\n" for line in lines)
            exchange.reply(HTTPStatus.SERVICE_UNAVAILABLE, body.encode(), _TEXT)
        else:
            exchange.reply(HTTPStatus.OK, b"ready\n", _TEXT)

    def _metrics(self, exchange: AdminExchange) -> Deferred[None]:
        accept = _header(exchange.request, b"accept")[:1000]
        # Only what selects the form: clients send any number of different headers.
        form = "application/openmetrics-text" if "application/openmetrics-text" in accept else ""

        def expose(sample: Sample) -> None:
            made = sample.rendered.get(form)
            if made is None:
                made = sample.rendered[form] = self._exposition(
                    sample.statuses, sample.departed, accept if form else form, [sample.departed_metrics]
                )
            exchange.reply(HTTPStatus.OK, *made)

        return self._samples.take(COUNTS).addCallback(expose)

    def _status(self, exchange: AdminExchange) -> Deferred[None]:
        query = _query(exchange.request)

        def show(sample: Sample) -> None:
            exchange.reply_json(
                HTTPStatus.OK,
                {
                    **status.overview(sample, self._operations.not_ready()),
                    "listeners": status.listeners(sample),
                    "connections": status.connections(sample, query),
                    "refusals": status.refusals(sample),
                },
            )

        return self._samples.take(query).addCallback(show)

    def _connections(self, exchange: AdminExchange) -> Deferred[None]:
        query = _query(exchange.request)

        def show(sample: Sample) -> None:
            exchange.reply_json(
                HTTPStatus.OK,
                {
                    "open": sum(each.open for each in sample.statuses),
                    "connections": status.connections(sample, query),
                },
            )

        return self._samples.take(query).addCallback(show)

    def _sampled(self, name: str, make: Callable[[Sample], object]) -> Callable[[AdminExchange], Deferred[None]]:
        """Make a method that answers with one part of a sample."""

        def show(sample: Sample, exchange: AdminExchange) -> None:
            exchange.reply_json(HTTPStatus.OK, {name: make(sample)})

        return lambda exchange: self._samples.take(COUNTS).addCallback(show, exchange)

    def _events(self, exchange: AdminExchange) -> None:
        query = _query(exchange.request)
        if exchange.request.method == b"HEAD":
            exchange.reply(HTTPStatus.OK, b"", "text/event-stream")
        elif not self._stream.watch(exchange, query):
            line = f"{MOST_WATCHERS} clients read this already, the maximum; close a page that is open elsewhere"
            exchange.fail(HTTPStatus.SERVICE_UNAVAILABLE, line, {"Retry-After": "10"})

    def _close(self, exchange: AdminExchange, connection: str) -> Deferred[None]:
        _log_command(exchange, f"close connection {connection}")

        def closed(found: bool) -> None:
            if found:
                exchange.reply_json(HTTPStatus.OK, {"closed": connection})
            else:
                exchange.fail(HTTPStatus.NOT_FOUND, f"no connection {connection}; it may have ended")

        return self._operations.close_connection(connection).addCallback(closed)

    def _command(self, exchange: AdminExchange, path: str) -> None:
        _log_command(exchange, path.rpartition("/")[2])
        done = self._writes[path](())

        def under_way() -> None:
            exchange.reply_json(
                HTTPStatus.ACCEPTED, {"done": False, "lines": ["still running; the log will have the result"]}
            )

        waiting = self._clock.callLater(PATIENCE, under_way)
        exchange.when_ended(lambda: waiting.cancel() if waiting.active() else None)
        done.addCallback(lambda answer: _answered(exchange, answer)).addErrback(_failed, exchange)


def _answered(exchange: AdminExchange, answer: Answer) -> None:
    if not exchange.waiting:
        return
    if answer.status:
        exchange.reply_json(
            HTTPStatus.CONFLICT, {"error": "; ".join(answer.lines) or "failed", "lines": [*answer.lines]}
        )
    else:
        exchange.reply_json(HTTPStatus.OK, {"done": True, "lines": [*answer.lines]})


def _show_file(file: PageFile, exchange: AdminExchange) -> None:
    exchange.reply(HTTPStatus.OK, file.body, file.kind)


def _log_command(exchange: AdminExchange, what: str) -> None:
    _log.info("{what}, requested by {peer}", what=what, peer=peer_name(exchange.peer))


def _wrong_method(methods: Sequence[str]) -> _HTTPError:
    return _HTTPError(HTTPStatus.METHOD_NOT_ALLOWED, f"use {methods[0]}", {"Allow": ", ".join(methods)})


def _header(request: Request, name: bytes) -> str:
    return (request.header(name) or b"").decode("latin-1")


def _check_body(request: Request) -> None:
    """Raise `_HTTPError` unless the body is JSON: a form on another site can send anything else."""
    if not _JSON.fullmatch(_header(request, b"content-type").strip()):
        raise _HTTPError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send it with Content-Type: application/json")
    try:
        value = json.loads(request.body) if request.body else {}
    except (ValueError, RecursionError):
        value = None
    if value != {}:
        raise _HTTPError(HTTPStatus.BAD_REQUEST, "the body must be empty or {}: this takes no arguments")


def _query(request: Request) -> ConnectionQuery:
    """Parse the parameters that select connections. Raises `_HTTPError`."""
    try:
        given = parse_qs(request.query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise _HTTPError(HTTPStatus.BAD_REQUEST, "too many parameters; use connections, order and words") from None
    arguments = {name: values[-1].decode("utf-8", "replace") for name, values in given.items()}
    if unknown := sorted(arguments.keys() - {b"connections", b"order", b"words"}):
        raise _HTTPError(
            HTTPStatus.BAD_REQUEST, f"unknown parameter {escape(unknown[0], 40)}; use connections, order and words"
        )
    most, order = arguments.get(b"connections", "100"), arguments.get(b"order", "rate")
    if not (most.isascii() and most.isdecimal() and len(most) <= 3 and int(most) <= MOST_SHOWN):
        raise _HTTPError(HTTPStatus.BAD_REQUEST, f"connections must be a number from 0 to {MOST_SHOWN}")
    if order not in ORDERS:
        raise _HTTPError(HTTPStatus.BAD_REQUEST, f"order must be one of {', '.join(ORDERS)}")
    text = arguments.get(b"words", "")
    words = tuple(dict.fromkeys(text.split()))
    if len(words) > MOST_WORDS or len(text) > LONGEST_WORDS:
        raise _HTTPError(HTTPStatus.BAD_REQUEST, f"at most {MOST_WORDS} words, of {LONGEST_WORDS} characters in all")
    return ConnectionQuery(int(most), order, words)


def _failed(failure: Failure, exchange: AdminExchange) -> None:
    error = failure.value
    if isinstance(error, _HTTPError):
        exchange.fail(*error.args)
    elif failure.check(TooManySamplesError):
        exchange.fail(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many requests; try again in a second",
            {"Retry-After": "1"},
        )
    else:
        _log.failure("a request to the admin address failed", failure)
        exchange.fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"failed with {type(failure.value).__name__}; see the log")
