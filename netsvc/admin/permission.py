"""Access to the admin address: the names that browsers send, and a token.

A page of any site can make a browser send requests to a loopback address. The browser then names that site (`Origin`,
RFC 6454, section 7; `Sec-Fetch-Site`); or the site has its own name resolve to that address, and the browser asks for
this name (`Host`).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection
from http import HTTPStatus
from typing import NamedTuple

from netsvc.http.request import Request

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[^\s:\[\]]{1,255})(:\d{1,5})?")
_ORIGIN = re.compile(r"(https?)://(\S{1,300})")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Denial(NamedTuple):
    """Why a request is denied: the HTTP status code, and one line of text."""

    code: int
    text: str


class Permission:
    """Decides by the headers of a request. `hosts` are names of this server besides loopback; None allows any name.

    Any name is safe where a foreign site cannot use its visitors' rights, as it does not know their token.
    """

    def __init__(self, token: bytes | None = None, hosts: Collection[str] | None = ()) -> None:
        self._token = token
        self._hosts = hosts

    def refuse(self, request: Request, *, reads: bool, public: bool) -> Denial | None:
        """Return why a request is denied, or None.

        `reads` means that the request changes nothing, `public` that its answer has nothing about this server and no
        token is needed.
        """
        host = _only(request, b"host")
        if host is None or not self._is_ours(host):
            return Denial(HTTPStatus.FORBIDDEN, "unknown Host; use localhost or the address of this server")
        if not _is_same_site(request, host, reads=reads):
            return Denial(HTTPStatus.FORBIDDEN, "requests from another site are denied")
        if self._token is None or public or self._has_token(request):
            return None
        return Denial(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong; send it as: Authorization: Bearer TOKEN")

    @staticmethod
    def guesses(request: Request) -> bool:
        """Return whether a request without the right token has tried one."""
        return request.header(b"authorization") is not None

    def _is_ours(self, host: str) -> bool:
        # A browser always sends one.
        if self._hosts is None or not host:
            return True
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]")
        if name == "localhost" or name in self._hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _has_token(self, request: Request) -> bool:
        [given, *more] = request.values(b"authorization") or [b""]
        scheme, _, token = given.partition(b" ")
        known = hmac.compare_digest(token.strip(), self._token or b"")
        return known and scheme.lower() == b"bearer" and not more


def _only(request: Request, name: bytes) -> str | None:
    """Return the value of a header in lower case, empty if it is missing, None if there are several."""
    [value, *more] = request.values(name) or [b""]
    return None if more else value.decode("latin-1").lower()


def _is_same_site(request: Request, host: str, *, reads: bool) -> bool:
    origin, site = _only(request, b"origin"), _only(request, b"sec-fetch-site")
    # A user follows a link; the site that has it cannot read the answer.
    follows = (
        reads and _only(request, b"sec-fetch-mode") == "navigate" and _only(request, b"sec-fetch-dest") == "document"
    )
    if site not in ("", "same-origin", "none") and not follows:
        return False
    if origin == "":
        return True
    found = _ORIGIN.fullmatch(origin or "")
    if found is None:
        return False
    port = _DEFAULT_PORTS[found[1]]
    return found[2].removesuffix(port) == host.removesuffix(port)
