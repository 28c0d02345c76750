"""Requests of HTTP/1.0 and 1.1, and the parser that reads them from bytes. Knows no transport.

The bytes are parsed by httptools (llhttp, the parser of Node.js), which refuses what two servers could read in two
ways: both Content-Length and Transfer-Encoding, line ends without CR, folded headers. Here are the limits, and the rest
of RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

#: The value of Host (RFC 9110, section 7.2), which may be empty; and a target in absolute form (RFC 9112, section
#: 3.2.2): the host and port, and the path with the query.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.%]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(/[^#]*|\?[^#]*)?", re.IGNORECASE)
#: What the line of any request looks like (RFC 9112, section 3). httptools also takes several spaces for one, a line
#: without a version, and other protocols.
_LINE = re.compile(rb"[^\s]+ [^\s#]+ HTTP/[0-9.]+\r\n")
_METHOD = re.compile(rb"([A-Z-]{1,32}) ")
#: How the line of another version begins.
_OTHER_VERSION = re.compile(rb"[^\s]+ [^\s#]+ HTTP/(?!1\.[01])[0-9]\.[0-9]")
_HIGH = re.compile(rb"[\x80-\xff]")

#: A request line without anything that would have to be interpreted: by its characters (RFC 3986, section 3.3, and the
#: query), and the methods that have no body.
_PLAIN_LINE = re.compile(rb"(GET|HEAD) (/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*) HTTP/1\.1\r\n")
#: Headers of `KnownHeaders`, and their bytes at most.
MOST_KNOWN, LONGEST_KNOWN = 64, 2048

#: Bytes around a header, or around a byte of the body that is a chunk of its own.
_OVERHEAD = 8

_VERSIONS = {"1.0": 10, "1.1": 11}


class RequestError(Exception):
    """A request that is answered with an error, after which the connection is closed: its status and one line."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(status, line)
        self.status = status
        self.line = line


@dataclass(frozen=True)
class RequestLimits:
    """The bytes of a target, of the names and values of all headers, and of a body; and the number of headers."""

    target: int = 4096
    head: int = 8192
    headers: int = 64
    body: int = 0


class Request:
    """A complete request. `path` is decoded, without the query; `headers` have names in lower case, in their order.

    A target in absolute form is replaced by its path, and its host by the header Host (RFC 9112, section 3.2.2).
    Several requests may share their headers.
    """

    __slots__ = ("body", "headers", "keep_alive", "method", "names", "path", "query", "target", "version")

    def __init__(  # noqa: PLR0917
        self,
        method: bytes,
        target: bytes,
        version: int,
        headers: Sequence[tuple[bytes, bytes]],
        keep_alive: bool,
        names: Set[bytes] | None = None,
    ) -> None:
        self.method = method
        self.target = target
        #: 10 or 11.
        self.version = version
        self.headers = headers
        #: The names of the headers.
        self.names: Set[bytes] = frozenset([name for name, _ in headers]) if names is None else names
        #: Whether the client allows another request on the connection.
        self.keep_alive = keep_alive
        self.body = b""
        path, _, self.query = target.partition(b"?")
        self.path = unquote_to_bytes(path) if b"%" in path else path

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header, by its name in lower case; None if it is missing."""
        if name not in self.names:
            return None
        for each, value in self.headers:
            if each == name:
                return value
        return None

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a header."""
        return [value for each, value in self.headers if each == name]


class KnownHeaders:
    """The header sections of requests without a body that were parsed lately, byte by byte as they were sent.

    A client sends the same headers with each request. What they mean does not depend on a plain request line before
    them, so they are parsed once. For parsers with the same limits.
    """

    def __init__(self, limits: RequestLimits | None = None) -> None:
        self._requests: dict[bytes, Request] = {}
        self._longest = (limits or RequestLimits()).target

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, section: bytes, request: Request) -> None:
        """Remember the headers of a request."""
        if len(section) <= LONGEST_KNOWN:
            if len(self._requests) >= MOST_KNOWN:
                self._requests.clear()
            self._requests[section] = request

    def find(self, data: bytes) -> Request | None:
        """Return the request that the bytes are, exactly; None if its line is not plain or its headers not known."""
        line = _PLAIN_LINE.match(data)
        if line is None:
            return None
        known = self._requests.get(data[line.end() :])
        if known is None:
            return None
        method, target = line.groups()
        if len(target) > self._longest:
            return None
        return Request(method, target, 11, known.headers, known.keep_alive, known.names)


class RequestParser:
    """Reads requests from the bytes of a connection, whatever pieces they come in.

    `expects_body` is called when the client waits with the body until it is told to send it (RFC 9110, section
    10.1.1). Nothing more is read after an error. Requests to switch protocols are answered like any other.
    """

    __slots__ = (
        *("_body", "_body_left", "_body_size", "_expects_body", "_failed", "_found", "_headers", "_host"),
        "_in_first_line",
        *(
            "_is_http",
            "_is_last",
            "_is_plain",
            "_is_wrong",
            "_known",
            "_limits",
            "_line",
            "_longest",
            "_parser",
            "_pending",
        ),
        "_request",
        *("_tail", "_target", "_unseen", "busy"),
    )

    def __init__(
        self,
        limits: RequestLimits,
        expects_body: Callable[[], None] = lambda: None,
        known: KnownHeaders | None = None,
    ) -> None:
        self._limits = limits
        self._known = KnownHeaders(limits) if known is None else known
        self._longest = limits.target + limits.head + _OVERHEAD * limits.headers
        self._expects_body = expects_body
        #: Not for requests whose headers are known.
        self._parser: HttpRequestParser | None = None
        self._found: list[Request | RequestError] = []
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        #: A value of Host that has been checked.
        self._host: bytes | None = None
        self._body: list[bytes] = []
        self._body_size = 0
        #: What is missing of a body of known length.
        self._body_left = 0
        #: The last bytes of a request that is not complete, which may be a part of an empty line.
        self._tail = b""
        self._request: Request | None = None
        self._failed = False
        #: Whether a request has come after which there are no others, and that request, if it was not parsed.
        self._is_last = False
        self._unseen = b""
        #: Whether the last request had neither a body nor an expectation.
        self._is_plain = False
        self._in_first_line = True
        #: The first line of the request, as far as it has come, and whether it is none of HTTP/1.
        self._line = b""
        self._is_wrong = False
        #: Whether the first byte has come, and could begin a method.
        self._is_http = False
        #: Whether a part of a request has come, but not all of it.
        self.busy = False
        # Bytes of a request that began in earlier data.
        self._pending = 0

    @property
    def method(self) -> bytes:
        """The method of what came last; empty if it has none."""
        found = _METHOD.match(self._line)
        return found[1] if found is not None else b""

    def feed(self, data: bytes) -> list[Request | RequestError]:
        """Take the next bytes; return the requests that they complete, and at last the error, if there is one."""
        found = []
        while data and not self._failed:
            more, data = self.take(data)
            found += more
        return found

    def take(self, data: bytes) -> tuple[list[Request | RequestError], bytes]:
        """Take the next bytes, but no more than one request; return what `feed` does, and the rest."""
        end = self._body_left
        if not end:
            # A head ends with an empty line, and so does a body in chunks.
            end = (self._tail + data).find(b"\r\n\r\n") + 4 - len(self._tail)
            if end == 3 - len(self._tail) or end >= len(data):
                end = len(data)
        piece = data[:end]
        found = self._feed(piece)
        self._tail = (self._tail + piece)[-3:] if self.busy and not piece.endswith(b"\r\n\r\n") else b""
        return found, data[end:]

    def _feed(self, data: bytes) -> list[Request | RequestError]:
        if self._failed:
            return []
        if self.busy or self._is_last:
            return self._parse(data)
        request = self._known.find(data)
        if request is None:
            found = self._parse(data)
            if len(found) == 1 and not self.busy and self._is_plain and isinstance(found[0], Request):
                line = _PLAIN_LINE.match(data)
                if line is not None:
                    self._known.add(data[line.end() :], found[0])
            return found
        if not request.keep_alive:
            # httptools refuses what follows, so it must see this request, but only if something does.
            self._is_last, self._unseen = True, data
        return [request]

    def _parse(self, data: bytes) -> list[Request | RequestError]:
        if self._unseen:
            seen, self._unseen = self._unseen, b""
            self._parse(seen)
        found: list[Request | RequestError] = []
        self._found = found
        if not self._is_http:
            # No method begins like this: a TLS ClientHello, or a client of another protocol.
            start = data.lstrip(b"\r\n")[:1]
            if start and not start.isalpha():
                self._fail(RequestError(HTTPStatus.BAD_REQUEST, "not HTTP"))
                return found
            self._is_http = bool(start)
        if self._in_first_line:
            if not data.isascii():
                data = _escaped(data)
            if not self.busy:
                self._line = b""
            # Empty lines may come before it (RFC 9112, section 2.2).
            line, end, _ = (data if self._line else data.lstrip(b"\r\n")).partition(b"\n")
            self._line += line + end
            self._is_wrong = bool(end) and _LINE.fullmatch(self._line) is None
        if self.busy:
            self._pending += len(data)
        if self._parser is None:
            self._parser = HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # The request is complete. A server may ignore Upgrade (RFC 9110, section 7.8).
            self._parser = None
            return found + self._parse(data[upgrade.args[0] :])
        except HttpParserInvalidMethodError:
            self._fail(RequestError(HTTPStatus.NOT_IMPLEMENTED, "unknown method"))
        except HttpParserCallbackError as error:
            if not isinstance(error.__context__, RequestError):
                raise
            self._fail(error.__context__)
        except HttpParserError as error:
            if _OTHER_VERSION.match(self._line) is not None:
                self._fail(_other_version())
                return found
            self._fail(RequestError(HTTPStatus.BAD_REQUEST, f"not HTTP/1.1: {str(error).lower()}"))
        if self._is_wrong and not self._failed:
            self._fail(_wrong_line())
        if found and isinstance(found[-1], Request) and not found[-1].keep_alive:
            self._is_last = True
        self._in_first_line = not self.busy or (self._in_first_line and b"\n" not in data)
        if self.busy and self._pending > self._longest + (_OVERHEAD * self._limits.body if self._request else 0):
            self._fail(_too_many_headers())
        return found

    def _fail(self, error: RequestError) -> None:
        self._failed, self.busy = True, False
        self._found.append(error)

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.busy = True
        self._is_plain = False
        self._target = b""
        self._headers = []
        self._pending = 0

    def on_url(self, part: bytes) -> None:
        """Add a part of the target."""
        self._target += part
        if len(self._target) > self._limits.target:
            raise RequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "the target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Those after the body are dropped, but counted."""
        if self._is_wrong:
            raise _wrong_line()
        self._headers.append((name.lower(), value))
        if len(self._headers) > self._limits.headers:
            raise _too_many_headers()

    def on_headers_complete(self) -> None:
        """Check the head."""
        if self._is_wrong:
            raise _wrong_line()
        parser, headers = self._parser, self._headers
        assert parser is not None
        version = _VERSIONS.get(parser.get_http_version())
        if version is None:
            raise _other_version()
        size = hosts = 0
        has_body = False
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
                if value != self._host:
                    if not _HOST.fullmatch(value):
                        raise RequestError(HTTPStatus.BAD_REQUEST, "Host must be HOST or HOST:PORT")
                    self._host = value
            elif name == b"content-length":
                # Without zeros in front: Python reads no number of more than 4300 digits.
                digits = value.strip().lstrip(b"0")
                if int(digits or b"0") > self._limits.body:
                    raise self._too_large()
                self._body_left = int(digits or b"0")
                has_body = has_body or bool(digits)
            elif name == b"transfer-encoding":
                # Of HTTP/1.0, which may have passed a proxy that does not know it (RFC 9112, section 6.1).
                if version == 10:
                    raise RequestError(HTTPStatus.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding")
                if value.lower() != b"chunked":
                    raise RequestError(HTTPStatus.NOT_IMPLEMENTED, "the only Transfer-Encoding is chunked")
                has_body = True
        if size > self._limits.head:
            raise _too_many_headers()
        # httptools would take the body for the next request.
        if has_body and parser.should_upgrade():
            raise RequestError(HTTPStatus.BAD_REQUEST, "a request with Upgrade cannot have a body")
        # HTTP/1.0 has no such header.
        if hosts != 1 and (hosts or version == 11):
            raise RequestError(HTTPStatus.BAD_REQUEST, "HTTP/1.1 requires the header Host, once")
        method, target = parser.get_method(), self._target
        if target[:1] != b"/":
            target = _origin_form(method, target, headers)
        request = self._request = Request(method, target, version, headers, parser.should_keep_alive())
        # What follows are trailers.
        self._headers = []
        self._body, self._body_size = [], 0
        self._is_plain = not has_body and b"expect" not in request.names
        if version == 11 and (expected := request.header(b"expect")) is not None:
            if expected.lower() != b"100-continue":
                raise RequestError(HTTPStatus.EXPECTATION_FAILED, "unknown expectation")
            if has_body:
                self._expects_body()

    def on_body(self, part: bytes) -> None:
        """Add a part of the body."""
        self._body_size += len(part)
        self._body_left = max(0, self._body_left - len(part))
        if self._body_size > self._limits.body:
            raise self._too_large()
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Complete the request."""
        request = self._request
        assert request is not None
        if self._body:
            request.body = b"".join(self._body)
        self.busy = False
        self._body_left = 0
        self._request = None
        self._found.append(request)

    def _too_large(self) -> RequestError:
        return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {self._limits.body} bytes")


def _escaped(data: bytes) -> bytes:
    """Escape bytes of the target that are not ASCII: some clients, such as curl, send what the user has written."""
    line, end, rest = data.partition(b"\r\n")
    return _HIGH.sub(lambda byte: b"%%%02X" % byte[0][0], line) + end + rest


def _origin_form(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return a target in absolute form as a path, after replacing the header Host. Raises `RequestError`."""
    found = _ABSOLUTE.fullmatch(target)
    if found is not None and _HOST.fullmatch(found[1]):
        headers[:] = [(b"host", found[1]), *(header for header in headers if header[0] != b"host")]
        path = found[2] or b"/"
        return path if path.startswith(b"/") else b"/" + path
    if (method, target) == (b"OPTIONS", b"*"):
        return target
    raise RequestError(HTTPStatus.BAD_REQUEST, "the target must be a path, or http:// with a host and a path")


def _other_version() -> RequestError:
    return RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "use HTTP/1.1")


def _wrong_line() -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, "the first line must be METHOD TARGET HTTP/1.1")


def _too_many_headers() -> RequestError:
    return RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too many or too long")
