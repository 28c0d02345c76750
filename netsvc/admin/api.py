"""What can be asked at the admin address, and what is answered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from netsvc.admin import overview
from netsvc.admin.files import PageFile, read_page
from netsvc.admin.permission import Permission
from netsvc.admin.samples import COUNTS, BusyError, Sample
from netsvc.admin.watching import MOST_WATCHERS, Watching
from netsvc.admin.wire import LONGEST_BODY, AdminRequest
from netsvc.guard.peers import peer_key
from netsvc.guard.refusals import Refusals
from netsvc.host.control import Answer
from netsvc.host.operations import Operations
from netsvc.status import MOST_SHOWN, ORDERS, ConnectionQuery, ListenerStatus, ProcessStatus
from netsvc.text import escape, peer_name

__all__ = ["PATHS", "Exposition", "Service"]

#: What there is, and what it answers; docs/operations.md is made of it.
PATHS: Mapping[str, str] = {
    "GET /": "the live page",
    "GET /health": "`ok` for as long as the event loop turns",
    "GET /ready": "`ready`; or status 503 and a line for each thing that is not: a listener that is down, a drain",
    "GET /metrics": "the metrics, for Prometheus",
    "GET /api/status": "everything: processes, totals, listeners, connections, refusals. "
    "`connections=N` lists so many (100, at most 500), `order=` rate, bytes, age or new, "
    "`words=` those that have them all",
    "GET /api/listeners": "the listeners, with what each has counted, and its limits",
    "GET /api/connections": "connections and UDP sessions; takes what `/api/status` takes",
    "GET /api/limits": "the limits in force, of each listener",
    "GET /api/refusals": "the last refusals, newest first",
    "GET /api/history": "a point for each second or two of the last five minutes: open, and rates a second",
    "GET /api/stream": "all of that as it happens, as server-sent events: `history`, `limits`, each second `status`",
    "POST /api/connections/ID/close": "closes a connection in order, or forgets a UDP session",
    "POST /api/drain": "stops accepting, lets conversations end, and stops",
    "POST /api/reload": "reads the configuration again",
    "POST /api/upgrade": "has the program that is installed now take over",
}

#: Seconds to wait for what a command has to say, before the answer is that it is under way.
PATIENCE = 5.0
#: Words that are looked for, and characters of all.
MOST_WORDS, LONGEST_WORDS = 8, 200

#: Makes the metrics of what was seen into a body and its type: `netsvc.exposition.exposition`.
Exposition = Callable[
    [Sequence[ProcessStatus], Sequence[ListenerStatus], str, Sequence[Sequence[dict[str, Any]]]], tuple[bytes, str]
]

_TEXT = "text/plain; charset=utf-8"
_CLOSE = re.compile(r"/api/connections/([0-9A-Za-z.:-]{1,64})/close")
_JSON = re.compile(r"application/json\s*(;.*)?", re.IGNORECASE)

_log = Logger(namespace="netsvc.admin")


class _WrongError(Exception):
    """It cannot be answered: a status of HTTP, a line that says why, and headers, if there are any."""


class Service:
    """Answers requests. Nothing that is asked is waited for by others."""

    def __init__(
        self,
        clock: Any,
        operations: Operations,
        exposition: Exposition,
        permission: Permission,
        watching: Watching,
    ) -> None:
        self._clock = clock
        self._operations = operations
        self._exposition = exposition
        self._permission = permission
        self._samples = watching.samples
        self._watching = watching
        self._page = read_page()
        #: Who has named a wrong token: said in the log once a second.
        self._guesses = Refusals(clock)
        self._reads: Mapping[str, Callable[[AdminRequest], object]] = {
            **{path: partial(_show_file, file) for path, file in self._page.items()},
            "/health": lambda request: request.answer(http.OK, b"ok\n", _TEXT),
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/api/status": self._status,
            "/api/listeners": self._seen("listeners", overview.listeners),
            "/api/connections": self._connections,
            "/api/limits": self._seen("limits", overview.limits),
            "/api/refusals": self._seen("refusals", overview.refusals),
            "/api/history": lambda request: request.answer_json(http.OK, {"history": list(watching.history.points)}),
            "/api/stream": self._stream,
        }
        self._writes: Mapping[str, Callable[[Sequence[str]], Deferred[Answer]]] = {
            "/api/drain": operations.drain,
            "/api/reload": operations.reread,
            "/api/upgrade": operations.upgrade,
        }

    def serve(self, request: AdminRequest) -> None:
        """Answer a request, whatever it is."""
        maybeDeferred(self._serve, request).addErrback(_failed, request)

    def _serve(self, request: AdminRequest) -> object:
        path = request.path.decode("ascii", "replace")
        reads = request.method in (b"GET", b"HEAD")
        refusal = self._permission.refuse(request.requestHeaders, reads=reads, public=reads and path in self._page)
        if refusal is not None:
            if refusal.code == http.UNAUTHORIZED and self._permission.guesses(request.requestHeaders):
                self._guesses.count("admin", "token", peer_key(getattr(request.getClientAddress(), "host", None) or ""))
            headers = {"WWW-Authenticate": "Bearer"} if refusal.code == http.UNAUTHORIZED else {}
            raise _WrongError(*refusal, headers)
        closes = _CLOSE.fullmatch(path)
        read = self._reads.get(path)
        if read is not None:
            if not reads:
                raise _wrong_method("GET, HEAD")
            return read(request)
        if closes is None and path not in self._writes:
            raise _WrongError(http.NOT_FOUND, "there is nothing by that name; docs/operations.md has all that there is")
        if request.method != b"POST":
            raise _wrong_method("POST")
        _check_body(request)
        if closes is not None:
            return self._close(request, closes[1])
        self._command(request, path)
        return None

    def close(self) -> None:
        """Log what is left to log, and wait for nothing any more."""
        self._guesses.close()

    def _ready(self, request: AdminRequest) -> None:
        lines = self._operations.not_ready()
        if lines:
            # The name of a socket is a path, which may have anything in it.
            body = "".join(f"{escape(line, 1000)}\n" for line in lines)
            request.answer(http.SERVICE_UNAVAILABLE, body.encode(), _TEXT)
        else:
            request.answer(http.OK, b"ready\n", _TEXT)

    def _metrics(self, request: AdminRequest) -> Deferred[None]:
        accept = _header(request, b"Accept")[:1000]
        # Only what changes the form: any number of clients may ask in words of their own.
        form = "application/openmetrics-text" if "application/openmetrics-text" in accept else ""

        def expose(sample: Sample) -> None:
            made = sample.rendered.get(form)
            if made is None:
                made = sample.rendered[form] = self._exposition(
                    sample.statuses, sample.departed, accept if form else form, [sample.departed_metrics]
                )
            request.answer(http.OK, *made)

        return self._samples.look(COUNTS).addCallback(expose)

    def _status(self, request: AdminRequest) -> Deferred[None]:
        query = _query(request)

        def show(sample: Sample) -> None:
            request.answer_json(
                http.OK,
                {
                    **overview.overview(sample, self._operations.not_ready()),
                    "listeners": overview.listeners(sample),
                    "connections": overview.connections(sample, query),
                    "refusals": overview.refusals(sample),
                },
            )

        return self._samples.look(query).addCallback(show)

    def _connections(self, request: AdminRequest) -> Deferred[None]:
        query = _query(request)

        def show(sample: Sample) -> None:
            request.answer_json(
                http.OK,
                {
                    "open": sum(status.open for status in sample.statuses),
                    "connections": overview.connections(sample, query),
                },
            )

        return self._samples.look(query).addCallback(show)

    def _seen(self, name: str, make: Callable[[Sample], object]) -> Callable[[AdminRequest], Deferred[None]]:
        """Make what answers with one thing of what was seen."""

        def show(sample: Sample, request: AdminRequest) -> None:
            request.answer_json(http.OK, {name: make(sample)})

        return lambda request: self._samples.look(COUNTS).addCallback(show, request)

    def _stream(self, request: AdminRequest) -> None:
        query = _query(request)
        if request.method == b"HEAD":
            request.answer(http.OK, b"", "text/event-stream")
        elif not self._watching.watch(request, query):
            line = f"{MOST_WATCHERS} watch already; close a page that is open elsewhere"
            request.fail(http.SERVICE_UNAVAILABLE, line, {"Retry-After": "10"})

    def _close(self, request: AdminRequest, connection: str) -> Deferred[None]:
        _say(request, f"close connection {connection}")

        def closed(was_there: bool) -> None:
            if was_there:
                request.answer_json(http.OK, {"closed": connection})
            else:
                request.fail(http.NOT_FOUND, f"there is no connection {connection}; it has ended")

        return self._operations.close_connection(connection).addCallback(closed)

    def _command(self, request: AdminRequest, path: str) -> None:
        _say(request, path.rpartition("/")[2])
        done = self._writes[path](())

        def under_way() -> None:
            request.answer_json(
                http.ACCEPTED, {"done": False, "lines": ["it is under way; the log has what comes of it"]}
            )

        waiting = self._clock.callLater(PATIENCE, under_way)
        request.notifyFinish().addBoth(lambda _result: waiting.active() and waiting.cancel())
        done.addCallback(lambda answer: _answered(request, answer)).addErrback(_failed, request)


def _answered(request: AdminRequest, answer: Answer) -> None:
    if not request.waiting:
        return
    if answer.status:
        request.answer_json(http.CONFLICT, {"error": "; ".join(answer.lines) or "it failed", "lines": [*answer.lines]})
    else:
        request.answer_json(http.OK, {"done": True, "lines": [*answer.lines]})


def _show_file(file: PageFile, request: AdminRequest) -> None:
    request.answer(http.OK, file.body, file.kind)


def _say(request: AdminRequest, what: str) -> None:
    _log.info("{what}, asked by {peer}", what=what, peer=peer_name(request.getClientAddress()))


def _wrong_method(right: str) -> _WrongError:
    return _WrongError(http.NOT_ALLOWED, f"ask for it with {right.partition(',')[0]}", {"Allow": right})


def _header(request: AdminRequest, name: bytes) -> str:
    return (request.getHeader(name) or b"").decode("latin-1")


def _check_body(request: AdminRequest) -> None:
    """Raise `_WrongError` if it may be that a form of another site has sent this: no form can send JSON."""
    if not _JSON.fullmatch(_header(request, b"Content-Type").strip()):
        raise _WrongError(http.UNSUPPORTED_MEDIA_TYPE, "send it with Content-Type: application/json")
    if request.too_long:
        raise _WrongError(http.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {LONGEST_BODY} bytes")
    content: Any = request.content
    body = content.read()
    try:
        value = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        value = None
    if value != {}:
        raise _WrongError(http.BAD_REQUEST, "the body is nothing, or {}: there is nothing to choose")


def _query(request: AdminRequest) -> ConnectionQuery:
    """Read which connections are asked for. Raises `_WrongError`."""
    arguments = {name: values[-1].decode("utf-8", "replace") for name, values in request.args.items()}
    if unknown := sorted(arguments.keys() - {b"connections", b"order", b"words"}):
        raise _WrongError(http.BAD_REQUEST, f"{escape(unknown[0], 40)}: it takes connections, order and words")
    most, order = arguments.get(b"connections", "100"), arguments.get(b"order", "rate")
    if not (most.isascii() and most.isdecimal() and len(most) <= 3 and int(most) <= MOST_SHOWN):
        raise _WrongError(http.BAD_REQUEST, f"connections is a number from 0 to {MOST_SHOWN}")
    if order not in ORDERS:
        raise _WrongError(http.BAD_REQUEST, f"order is one of {', '.join(ORDERS)}")
    text = arguments.get(b"words", "")
    words = tuple(dict.fromkeys(text.split()))
    if len(words) > MOST_WORDS or len(text) > LONGEST_WORDS:
        raise _WrongError(http.BAD_REQUEST, f"at most {MOST_WORDS} words, of {LONGEST_WORDS} characters in all")
    return ConnectionQuery(int(most), order, words)


def _failed(failure: Failure, request: AdminRequest) -> None:
    error = failure.value
    if isinstance(error, _WrongError):
        request.fail(*error.args)
    elif failure.check(BusyError):
        request.fail(
            HTTPStatus.TOO_MANY_REQUESTS, "too much is asked at once; ask again in a second", {"Retry-After": "1"}
        )
    else:
        _log.failure("a request to the admin address failed", failure)
        request.fail(http.INTERNAL_SERVER_ERROR, f"it failed: {type(failure.value).__name__}; the log has more")
