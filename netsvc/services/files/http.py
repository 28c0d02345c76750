"""Files over HTTP/1.1 (RFC 9110): whole, in ranges, or only if they have changed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from secrets import token_hex
from stat import S_ISDIR
from typing import Any
from urllib.parse import parse_qs, quote_from_bytes

from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from netsvc.base.text import escape
from netsvc.http.connection import Exchange, HTTPFactory, Times, WholeAnswer, header_lines
from netsvc.http.request import Request, RequestError, RequestLimits
from netsvc.services.files.access import GuardedSite
from netsvc.services.files.archive import KINDS
from netsvc.services.files.archives import Archives
from netsvc.services.files.coding import accepted_codings
from netsvc.services.files.conditions import (
    Validator,
    check_conditions,
    http_date,
    validator,
    wanted_ranges,
)
from netsvc.services.files.core import FilesCore
from netsvc.services.files.digest import checksum_line, digest_line, wants_sha256
from netsvc.services.files.download import SMALL, Download
from netsvc.services.files.file import DirectoryError, FileBusyError, FileRefusedError, OpenFile
from netsvc.services.files.headers import CrossOrigin
from netsvc.services.files.listing import POLICY, Entry, Query, Source, make_listing, parse_query
from netsvc.services.files.media_type import MARK_SIZE, media_type, with_charset
from netsvc.services.files.root import Directory
from netsvc.services.files.small import SmallFile, identity

LIMITS = RequestLimits(target=8192, head=16384, headers=100, body=0)
TIMES = Times(request=30.0, idle=60.0)

_METHODS = "GET, HEAD, OPTIONS"
_TYPE = b"Content-Type: %b\r\n"
_BY_CODING = b"Vary: Accept-Encoding\r\n"
_TEXT = header_lines({"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"})
_ALLOW = header_lines({"Allow": _METHODS})
#: Headers that make a request conditional, or one for ranges.
_CONDITIONS = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range")
)
_WANTS_DIGEST = b"want-repr-digest"
#: Seconds that an answer waits for a digest that the client wants with it.
LONGEST_WAIT = 5.0
#: Bytes of a file that it waits for. That of a larger one is computed meanwhile.
LARGEST_AWAITED = 256 * 1024 * 1024
#: What the record of a file that was sent whole has besides.
_SENT = {"method": "GET", "status": 200}
_buffer = bytearray(SMALL)

#: Directories that are listed at once; more wait for their turn, so many at most.
AT_ONCE, MOST_WAITING = 2, 64
#: The queries that ask for an archive of a directory, not a list.
_ARCHIVES = {kind.encode("ascii"): kind for kind in KINDS}
_VARIED = {"Cache-Control": "no-cache", "Vary": "Accept", "X-Content-Type-Options": "nosniff"}
_LISTING_HEAD = header_lines({"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY, **_VARIED})
_JSON_HEAD = header_lines({"Content-Type": "application/json", **_VARIED})
_CHECKSUM_HEAD = header_lines({"Content-Type": "text/plain; charset=utf-8", **_VARIED})


def http_factory(core: FilesCore) -> HTTPFactory:
    """Return a factory of connections that answer with the files of a core."""
    site = FilesSite(core)
    serve: Callable[[Exchange], object] = site.serve
    if core.access is not None:
        serve = GuardedSite(core.access, core.context.reactor, serve, site.refuse).serve
    factory = _Factory(core.context.reactor, serve, limits=LIMITS, times=TIMES)
    core.drains.append(factory.drain)
    return factory


class _Factory(HTTPFactory):
    def refuse(self, exchange: Exchange, error: RequestError) -> None:
        """Refuse the method of an upload rather than its size."""
        too_large = error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if too_large and exchange.request.method not in (b"GET", b"HEAD", b"OPTIONS"):
            exchange.answer(HTTPStatus.METHOD_NOT_ALLOWED, b"405 Method Not Allowed\n", _TEXT + _ALLOW)
        else:
            super().refuse(exchange, error)


class FilesSite:
    """Answers requests for files."""

    def __init__(self, core: FilesCore) -> None:
        self._core = core
        self._listings = Listings(core)
        self._archives = Archives(core)
        self._cross = CrossOrigin(core.cors) if core.cors else None
        #: Headers with which an answer can be another one than without.
        self._special = _CONDITIONS | {_WANTS_DIGEST}
        if self._cross is not None and self._cross.varies:
            self._special |= {b"origin"}
        #: Headers of every file.
        self._file_lines = b"X-Content-Type-Options: nosniff\r\n"
        if core.cache_control:
            self._file_lines += header_lines({"Cache-Control": core.cache_control})
        if core.precompressed:
            self._special |= {b"accept-encoding"}
            self._file_lines += _BY_CODING

    def serve(self, exchange: Exchange) -> None:
        """Answer a request; see `HTTPFactory`."""
        request = exchange.request
        core = self._core
        if core.receipts.waiting:
            core.receipts.look(exchange.connection)
        if request.method == b"GET" and not exchange.user and b"sha256" not in request.query:
            small = core.find_small(request.path[1:])
            if small is not None and self._special.isdisjoint(request.names):
                exchange.answer_whole(small.answer)
                core.record_sent(small.record, exchange.peer_name, exchange.started)
                return
        answer = FileAnswer(core, exchange, self._file_lines)
        if self._cross is not None:
            answer.lines = self._cross.lines(request)
        if request.method not in (b"GET", b"HEAD"):
            self._answer_method(answer, request)
            return
        name = request.path[1:]
        if b"\0" in name:
            # Those who pad names with NULs do not speak HTTP.
            answer.refuse(HTTPStatus.NOT_FOUND, "not a file name")
            return
        is_directory = not name or name.endswith(b"/")
        try:
            if is_directory:
                try:
                    file, path = self._core.find(name + b"index.html")
                except FileBusyError:
                    raise
                except FileRefusedError:
                    if not core.lists or _asks_checksum(request):
                        raise
                    if (kind := _ARCHIVES.get(request.query)) is not None:
                        self._archives.answer(answer, name, kind)
                    else:
                        self._listings.answer(answer, name)
                    return
            else:
                file, path = self._core.find(name)
        except DirectoryError as refusal:
            # From the root: a target such as //other.example/d would lead to another site.
            where, _, query = request.target.partition(b"?")
            place = b"/" + where.strip(b"/") + b"/" + (b"?" + query if query else b"")
            answer.refuse(HTTPStatus.MOVED_PERMANENTLY, str(refusal), {"Location": place.decode("ascii")})
        except FileBusyError as refusal:
            answer.refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(refusal), {"Retry-After": "10"})
        except FileRefusedError as refusal:
            answer.refuse(HTTPStatus.NOT_FOUND, str(refusal))
        else:
            if _asks_checksum(request):
                self._send_checksum(answer, file, path)
                return
            answer.is_plain = self._special.isdisjoint(request.names)
            answer.send(file, path)

    def _answer_method(self, answer: FileAnswer, request: Request) -> None:
        if request.method == b"OPTIONS" and self._cross is not None:
            answer.lines = self._cross.preflight(request)
        status = HTTPStatus.NO_CONTENT if request.method == b"OPTIONS" else HTTPStatus.METHOD_NOT_ALLOWED
        answer.refuse(status, status.phrase.lower(), {"Allow": _METHODS})

    def refuse(self, exchange: Exchange, status: HTTPStatus, reason: str, headers: dict[str, str]) -> None:
        """Answer without a file. A page of another origin may read why."""
        answer = FileAnswer(self._core, exchange, b"")
        if self._cross is not None:
            answer.lines = self._cross.lines(exchange.request)
        answer.refuse(status, reason, headers)

    def _send_checksum(self, answer: FileAnswer, file: OpenFile, path: bytes) -> None:
        as_json = _prefers_json(answer.exchange) or b"json" in parse_qs(answer.exchange.request.query, True)
        size, name = file.size, path.rpartition(b"/")[2]

        def send(digest: bytes | None) -> None:
            if digest is None:
                answer.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "changed or cannot be read", {"Retry-After": "1"})
                return
            if as_json:
                fields = {"name": self._core.text_of(name), "sha256": digest.hex(), "size": size}
                answer.send_text(json.dumps(fields).encode("ascii") + b"\n", path, _JSON_HEAD, "checksum")
            else:
                answer.send_text(checksum_line(digest, name), path, _CHECKSUM_HEAD, "checksum")

        try:
            answer.exchange.when_ended(self._core.ask_digest(file, path, answer.client, send))
        except FileBusyError as refusal:
            answer.refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(refusal), {"Retry-After": "10"})
        else:
            answer.exchange.when_ended(lambda: answer.left(path))
        finally:
            file.close()


class Listings:
    """Lists directories in threads: `AT_ONCE` at a time, and some more in turn."""

    def __init__(self, core: FilesCore) -> None:
        self._core = core
        self._turns = DeferredSemaphore(AT_ONCE)

    def answer(self, answer: FileAnswer, name: bytes) -> None:
        """Answer with the listing of a directory. Raises `FileRefusedError`."""
        exchange = answer.exchange
        try:
            query = parse_query(exchange.request.query)
        except ValueError as error:
            answer.refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if _prefers_json(exchange):
            query = replace(query, as_json=True)
        if len(self._turns.waiting) >= MOST_WAITING:
            raise FileBusyError("too many listings")
        directory, path = self._core.find_directory(name)
        path = path.strip(b"/") + b"/" if path.strip(b"/") else b""
        made = self._turns.run(self._in_thread, directory, path, query)
        made.addCallbacks(answer.send_listing, answer.fail, callbackArgs=(path, query.as_json))

    def _in_thread(self, directory: Directory, path: bytes, query: Query) -> Deferred[bytes]:
        core, reactor = self._core, self._core.context.reactor

        def follow(name: bytes) -> Entry | None:
            status = core.follow(path + name)
            if status is None:
                return None
            is_directory = S_ISDIR(status.st_mode)
            return Entry(name, is_directory, 0 if is_directory else status.st_size, status.st_mtime)

        source = Source(path, core.shows, follow, core.text_of, tuple(KINDS) if core.archives else ())
        make = partial(make_listing, directory, query, source)
        if not hasattr(reactor, "getThreadPool"):
            return maybeDeferred(make)
        return deferToThreadPool(reactor, reactor.getThreadPool(), make)


def _asks_checksum(request: Request) -> bool:
    return b"sha256" in request.query and b"sha256" in parse_qs(request.query, keep_blank_values=True)


def _prefers_json(exchange: Exchange) -> bool:
    accept = (exchange.request.header(b"accept") or b"").lower()
    return b"application/json" in accept and b"text/html" not in accept


class FileAnswer:
    """One answer, and its access line."""

    __slots__ = (
        *("_core", "_exchange", "_file", "_file_lines", "_first", "_is_given", "_is_recorded", "_name", "_parts"),
        *("_peer", "_sent", "_started", "_transport", "client", "exchange", "is_plain", "lines"),
    )

    def __init__(self, core: FilesCore, exchange: Exchange, file_lines: bytes) -> None:
        self._core = core
        self._file_lines = file_lines
        self.exchange = self._exchange = exchange
        self._started = exchange.started
        self._name = exchange.request.path
        self._peer = exchange.peer_name
        #: Who it is for, as far as clients are told apart.
        self.client: str | None = getattr(exchange.peer, "host", None)
        self._is_recorded = False
        #: Whether all of it was given to the system.
        self._is_given = False
        #: Headers of the answer, whatever it is.
        self.lines = b""
        #: Whether any client that asks for the same gets the same.
        self.is_plain = False

    def refuse(self, status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> None:
        """Answer without a file. Only the access line has the reason: it may say that a hidden file exists."""
        body = b"" if status == HTTPStatus.NO_CONTENT else f"{status.value} {status.phrase}\n".encode()
        self._exchange.answer(status, body, (_TEXT if body else b"") + self.lines + header_lines(headers or {}))
        self._record(reason, 0)

    def send_listing(self, body: bytes, path: bytes, as_json: bool) -> None:
        """Send the listing of a directory."""
        self.send_text(body, path or b"/", _JSON_HEAD if as_json else _LISTING_HEAD, "listed")

    def send_text(self, body: bytes, path: bytes, headers: bytes, result: str) -> None:
        """Send what is no file, but about one or a directory."""
        self._name = path
        if not self._exchange.waiting:
            result = "client went away"
        self._exchange.answer(HTTPStatus.OK, body, headers + self.lines)
        self._record(result, 0)

    def left(self, path: bytes) -> None:
        """Note that the answer has ended: the client is gone, if nothing else has been noted."""
        if not self._exchange.status:
            self._name = path
            self._record("client went away", 0)

    def ended(self, name: bytes, result: str, size: int) -> None:
        """Record an answer that is made elsewhere: of `name`, with so many bytes."""
        self._name = name
        self._record(result, size)

    def fail(self, failure: Failure) -> None:
        """Answer that a directory cannot be read."""
        failure.trap(OSError)
        self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"cannot be listed ({failure.value})", {"Retry-After": "10"})

    def send(self, file: OpenFile, path: bytes) -> None:
        """Send a file, or what was asked for of it."""
        self._name = path
        request, core = self._exchange.request, self._core
        coding, kind = "", b""
        if core.precompressed:
            kind = self._type_of(file, path)
            chosen = core.encoded(file, path, accepted_codings(request.values(b"accept-encoding")))
            if chosen is None:
                self.lines += _BY_CODING
                self.refuse(HTTPStatus.NOT_ACCEPTABLE, "no acceptable coding")
                return
            file, coding = chosen
        current = validator(file.size, file.modified, time.time_ns(), coding)
        headers = _head(current, path) + self._file_lines + self.lines
        if coding:
            self.is_plain = False
            headers += b"Content-Encoding: %b\r\n" % coding.encode("ascii")
        ranges = None
        if not self.is_plain:
            status = check_conditions(request, current)
            if status == HTTPStatus.NOT_MODIFIED:
                file.close()
                self._exchange.answer(status, b"", headers)
                self._record("not modified", 0)
                return
            if status != HTTPStatus.OK:
                file.close()
                self.refuse(HTTPStatus.PRECONDITION_FAILED, "precondition failed")
                return
            ranges = wanted_ranges(request, current, file.size)
            if coding and ranges and len(ranges) > 1:
                # Content-Encoding would be said of all the parts together, with what separates them.
                ranges = None
        kind = kind or self._type_of(file, path)
        wants = wants_sha256(request.values(_WANTS_DIGEST)) if not self.is_plain else None
        if ranges == [] or wants is False or not (wants or core.digests.any_known):
            self._send_selected(file, kind, ranges, headers, current)
            return

        def send(digest: bytes | None) -> None:
            self._send_selected(file, kind, ranges, headers + (digest_line(digest) if digest else b""), current)

        digest = core.digests.known(file)
        if digest is not None or not wants:
            send(digest)
            return
        self._await_digest(file, path, send)

    def _type_of(self, file: OpenFile, path: bytes) -> bytes:
        kind = media_type(path)
        if not kind.startswith(b"text/"):
            return kind
        return with_charset(kind, file.glance(MARK_SIZE), self._core.charset)

    def _await_digest(self, file: OpenFile, path: bytes, send: Callable[[bytes | None], None]) -> None:
        """Call `send` with the digest of an open file, or with None if there is none soon; not if the client leaves.

        It is computed as long as the client is there, so that it is known next time.
        """
        exchange, core = self._exchange, self._core
        timer: Any = None
        waits = True

        def end() -> bool:
            nonlocal waits
            waited, waits = waits, False
            if waited and timer is not None and timer.active():
                timer.cancel()
            return waited

        def answer(digest: bytes | None) -> None:
            if end():
                send(digest)

        def gone() -> None:
            if end():
                self.left(path)
                file.close()

        def evict() -> None:
            if end():
                self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many downloads", {"Retry-After": "10"})

        try:
            withdraw = core.ask_digest(file, path, self.client, answer)
        except FileBusyError:
            send(None)
            return
        # The answer to HEAD is nothing but the headers.
        if exchange.request.method == b"GET":
            longest = LONGEST_WAIT if file.size <= LARGEST_AWAITED else 0
            timer = core.context.reactor.callLater(longest, answer, None)
        file.evict = evict
        exchange.when_ended(gone)
        exchange.when_ended(withdraw)

    def _send_selected(
        self, file: OpenFile, kind: bytes, ranges: list[tuple[int, int]] | None, headers: bytes, current: Validator
    ) -> None:
        if ranges is None:
            self._send_whole(file, headers + _TYPE % kind, current)
        elif not ranges:
            file.close()
            place = {"Content-Range": f"bytes */{file.size}"}
            self.refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "no such range", place)
        elif len(ranges) == 1:
            [(start, stop)] = ranges
            headers += _TYPE % kind + b"Content-Range: bytes %d-%d/%d\r\n" % (start, stop - 1, file.size)
            self._start(HTTPStatus.PARTIAL_CONTENT, headers, file, [(b"", start, stop)])
        else:
            self._send_parts(file, kind, ranges, headers)

    def _send_whole(self, file: OpenFile, headers: bytes, current: Validator) -> None:
        exchange = self._exchange
        if exchange.request.method == b"HEAD":
            size = file.size
            file.close()
            exchange.start(HTTPStatus.OK, headers, size)
            exchange.finish()
            self._record("sent", 0)
            return
        if file.size <= SMALL and (data := file.read_cached(_buffer)) is not None:
            status = os.fstat(file.descriptor)
            file.close()
            exchange.answer(HTTPStatus.OK, data, headers)
            self._record("sent", len(data))
            # Not in another encoding: a file that has the name as it was sent would be meant, once there is one. Not
            # while it may change within the clock's tick, nor a copy of a file that has no size of its own.
            is_asked = self.is_plain and self._name == exchange.request.path[1:]
            if is_asked and not current.is_weak and status.st_mtime_ns == file.modified:
                answer = WholeAnswer.of(data, headers)
                record = self._core.sent_record(self._name, len(data), _SENT)
                self._core.small.add(self._name, SmallFile(identity(status), answer, record))
            return
        self._start(HTTPStatus.OK, headers, file, [(b"", 0, file.size)])

    def _send_parts(self, file: OpenFile, kind: bytes, ranges: list[tuple[int, int]], headers: bytes) -> None:
        boundary = token_hex(16).encode("ascii")
        parts = []
        for start, stop in ranges:
            head = b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: bytes %d-%d/%d\r\n\r\n" % (
                *(boundary, kind, start, stop - 1, file.size),
            )
            parts.append((head, start, stop))
        parts.append((b"\r\n--%b--\r\n" % boundary, 0, 0))
        headers += _TYPE % (b"multipart/byteranges; boundary=" + boundary)
        self._start(HTTPStatus.PARTIAL_CONTENT, headers, file, parts)

    def _start(self, status: HTTPStatus, headers: bytes, file: OpenFile, parts: list[tuple[bytes, int, int]]) -> None:
        """Send parts of a file, each after some other bytes."""
        exchange = self._exchange
        self._file, self._parts, self._first, self._sent = file, parts, 0, 0
        exchange.when_ended(self._gone)
        file.evict = self._evicted
        exchange.start(status, headers, sum(len(head) + stop - start for head, start, stop in parts))
        self._transport: Any = exchange.lend_transport()
        self._next()

    def _next(self) -> None:
        head, self._first, stop = self._parts.pop(0)
        self._file.select(self._first, stop)
        if head:
            self._transport.write(head)
        core = self._core
        Download(self._file, self._transport, self._sent_part, core.ahead, core.shares, closes=not self._parts).start()

    def _sent_part(self, cut: str | None) -> None:
        if cut is not None:
            self._cut(cut)
            return
        if not self._exchange.waiting:
            return
        self._sent += self._file.offset - self._first
        if self._parts:
            self._next()
            return
        exchange, core, given = self._exchange, self._core, self._core.context.reactor.seconds()
        exchange.sent = self._sent
        self._is_given = True
        exchange.finish()

        def ended(result: str) -> None:
            # Not the time until it is known.
            self._started += core.context.reactor.seconds() - given
            self._record(result, self._sent)

        core.receipts.expect(exchange.connection, ended)

    def _evicted(self) -> None:
        self._cut("stalled, and gave way to another")

    def _cut(self, reason: str) -> None:
        self._record(reason, self._sent + self._file.offset - self._first)
        self._exchange.connection.abort()

    def _gone(self) -> None:
        self._file.close()
        if not self._is_given:
            self._exchange.sent = size = self._sent + self._file.offset - self._first
            self._record("client went away", size)

    def _record(self, result: str, size: int) -> None:
        if not self._is_recorded:
            self._is_recorded = True
            exchange = self._exchange
            answer = {"method": exchange.request.method.decode("latin-1"), "status": int(exchange.status)}
            if exchange.user:
                answer["user"] = escape(exchange.user)
            self._core.record(self._peer, self._name, size, self._started, result, answer)


def _head(current: Validator, path: bytes) -> bytes:
    disposition = b""
    if not path.isascii():
        # Browsers show it, and keep the name when they save it (RFC 6266).
        name = quote_from_bytes(path.rpartition(b"/")[2], safe="").encode("ascii")
        disposition = b"Content-Disposition: inline; filename*=UTF-8''%b\r\n" % name
    return b"ETag: %b\r\nLast-Modified: %b\r\nAccept-Ranges: bytes\r\n%b" % (
        *(current.written, http_date(current.modified), disposition),
    )
