"""The headers that settings add to the answers of HTTP: Cache-Control, and the access of other origins (CORS)."""

from __future__ import annotations

import re

from netsvc.http.connection import header_lines
from netsvc.http.request import Request

#: What a page of another origin may read besides the headers that it always may (Fetch, section 3.3.3).
_EXPOSED = "Accept-Ranges, Content-Disposition, Content-Encoding, Content-Range, ETag, Repr-Digest, Retry-After"
_METHODS = "GET, HEAD"
#: Request headers that mean something here; a browser asks before it sends them.
_ALLOWED = (
    "Authorization, If-Match, If-Modified-Since, If-None-Match, If-Range, If-Unmodified-Since, Range, Want-Repr-Digest"
)
#: Seconds that a browser remembers the answer to a preflight request; none of them remembers longer.
_MAX_AGE = "7200"

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_DIRECTIVE = re.compile(rf'({_WORD})(?:=({_WORD}|"[\x20\x21\x23-\x5b\x5d-\x7e]*"))?')
#: Directives of an answer whose argument is a number of seconds (RFC 9111, section 5.2.2; RFC 5861).
_TIMES = frozenset({"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"})
_PLAIN = frozenset(
    {
        *("immutable", "must-revalidate", "must-understand", "no-cache", "no-store", "no-transform"),
        *("private", "proxy-revalidate", "public"),
    }
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def cache_control(value: str) -> str:
    """Check a value of Cache-Control. Raises `ValueError` with the accepted form."""
    # A quoted argument, such as the one of private="a, b", has commas.
    parts = re.findall(r'(?:"[^"]*"|[^",])+', value)
    for part in parts:
        found = _DIRECTIVE.fullmatch(part.strip())
        name = found[1].lower() if found is not None else ""
        if found is None or name not in _TIMES | _PLAIN:
            raise ValueError('directives of Cache-Control, such as "public, max-age=3600" or no-cache')
        if name in _TIMES and not (found[2] or "").isdecimal():
            raise ValueError(f"a whole number of seconds for {name}, such as {name}=3600")
        if name in _PLAIN - {"private", "no-cache"} and found[2]:
            raise ValueError(f"{name} without an argument")
    if not parts or ",".join(parts) != value:
        raise ValueError('directives of Cache-Control, such as "public, max-age=3600" or no-cache')
    return value


def origins(value: str) -> tuple[str, ...]:
    """Parse origins, separated by commas or spaces; `*` is any. Raises `ValueError` with the accepted form."""
    found = tuple(dict.fromkeys(value.replace(",", " ").split()))
    for each in found:
        match = _ORIGIN.fullmatch(each)
        if each == "*" and len(found) == 1:
            continue
        # A browser sends no default port, so such an origin would never match.
        if match is None or match[1] == _DEFAULT_PORTS.get(each.partition(":")[0]) or int(match[1] or 1) > 65535:
            raise ValueError("* or origins as browsers send them, such as https://example.org,http://localhost:5173")
    if not found:
        raise ValueError("* or origins as browsers send them, such as https://example.org,http://localhost:5173")
    return found


class CrossOrigin:
    """Lets pages of other origins read the answers (CORS; Fetch, section 3.3). `allowed` is as of `origins`."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        #: Whether the answer depends on the origin.
        self.varies = "*" not in allowed
        self._allowed = frozenset(each.encode("ascii") for each in allowed)
        self._vary = header_lines({"Vary": "Origin"}) if self.varies else b""
        self._any = header_lines({"Access-Control-Allow-Origin": "*"})
        self._exposed = header_lines({"Access-Control-Expose-Headers": _EXPOSED})
        self._preflight = header_lines(
            {
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _ALLOWED,
                "Access-Control-Max-Age": _MAX_AGE,
            }
        )

    def lines(self, request: Request) -> bytes:
        """Return the headers of the answer to a request."""
        granted = self._granted(request)
        return self._vary + granted + self._exposed if granted else self._vary

    def preflight(self, request: Request) -> bytes:
        """Return the headers of the answer to OPTIONS, which is a preflight request if it names a method."""
        granted = self._granted(request)
        asks = request.header(b"origin") is not None and request.header(b"access-control-request-method") is not None
        return self._vary + granted + self._preflight if granted and asks else self._vary

    def _granted(self, request: Request) -> bytes:
        if not self.varies:
            return self._any
        sent = request.values(b"origin")
        if len(sent) != 1 or sent[0] not in self._allowed:
            return b""
        return b"Access-Control-Allow-Origin: %b\r\n" % sent[0]
