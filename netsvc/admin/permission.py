"""Who may ask: by the names that browsers send along, and by a token.

A page of any site may have a browser ask an address on loopback. That browser says so (`Origin`, RFC 6454, section 7;
`Sec-Fetch-Site`), or it was made to take the address for the site's own, and then it asks for the site's name (`Host`).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection
from typing import NamedTuple

from twisted.web.http import FORBIDDEN, UNAUTHORIZED
from twisted.web.http_headers import Headers

__all__ = ["Permission", "Refusal"]

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[^\s:\[\]]{1,255})(:\d{1,5})?")
_ORIGIN = re.compile(r"(https?)://(\S{1,300})")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Refusal(NamedTuple):
    """Why an answer is refused: a status of HTTP, and a line."""

    code: int
    text: str


class Permission:
    """Decides by the headers of a request. `hosts` are the names that are asked for; None allows any.

    Any may be allowed where a site could not ask in the name of its visitors: it does not know their token.
    """

    def __init__(self, token: bytes | None = None, hosts: Collection[str] | None = ()) -> None:
        self._token = token
        self._hosts = hosts

    def refuse(self, headers: Headers, *, reads: bool, public: bool) -> Refusal | None:
        """Say why a request is not to be answered. `reads` says that it changes nothing, `public` that it shows none of
        what runs here: then no token is needed."""
        host = _only(headers, "Host")
        if host is None or not self._is_ours(host):
            return Refusal(FORBIDDEN, "this server is not known by that name; ask for localhost or its address")
        if not _is_same_site(headers, host, reads=reads):
            return Refusal(FORBIDDEN, "another site may not ask this")
        if self._token is None or public or self._has_token(headers):
            return None
        return Refusal(UNAUTHORIZED, "the token is missing or wrong; send it as: Authorization: Bearer TOKEN")

    @staticmethod
    def guesses(headers: Headers) -> bool:
        """Tell whether a request for which the token was wrong has named one."""
        return headers.hasHeader(b"Authorization")

    def _is_ours(self, host: str) -> bool:
        # Who has sent none is no browser.
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

    def _has_token(self, headers: Headers) -> bool:
        [given, *more] = headers.getRawHeaders(b"Authorization", [b""])
        scheme, _, token = given.partition(b" ")
        known = hmac.compare_digest(token.strip(), self._token or b"")
        return known and scheme.lower() == b"bearer" and not more


def _only(headers: Headers, name: str) -> str | None:
    """Return the value of a header in lower case, empty if it is not there, None if there are several."""
    # As bytes: Twisted would decode them, and fail at what is no UTF-8.
    [value, *more] = headers.getRawHeaders(name.encode("ascii"), [b""])
    return None if more else value.decode("latin-1").lower()


def _is_same_site(headers: Headers, host: str, *, reads: bool) -> bool:
    origin, site = _only(headers, "Origin"), _only(headers, "Sec-Fetch-Site")
    # Somebody follows a link: what is shown then is for that person's eyes alone.
    follows = (
        reads and _only(headers, "Sec-Fetch-Mode") == "navigate" and _only(headers, "Sec-Fetch-Dest") == "document"
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
