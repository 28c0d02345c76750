"""Reads the address of a server to talk to. Pure text: nothing is resolved or opened."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from netsvc.text import escape, is_unsafe

__all__ = ["FORMS", "Scheme", "ServerAddress", "parse_server"]

Scheme = Literal["tcp", "udp", "tls", "unix", "unixgram"]

#: What every message about a wrong address ends with.
FORMS = "PORT, HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, udp:HOST:PORT, tls:HOST:PORT, unix:PATH or unixgram:PATH"

_HERE = "127.0.0.1"
_HIGHEST_PORT = 65535
_SCHEMES: Mapping[str, Scheme] = {
    "tcp": "tcp",
    "udp": "udp",
    "tls": "tls",
    # What Twisted calls it.
    "ssl": "tls",
    "unix": "unix",
    "unixgram": "unixgram",
}
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]/@]+)):(?P<port>[^:]*)")


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is: `scheme` is tcp, udp or tls (with `host` and `port`), unix or unixgram (with `path`).

    `bare` tells that the user gave no scheme, so that `--udp` may still choose one.
    """

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""
    bare: bool = False

    @property
    def is_datagram(self) -> bool:
        """Whether it is talked to a datagram at a time."""
        return self.scheme in ("udp", "unixgram")

    def over_udp(self) -> ServerAddress:
        """Return the same address for datagrams. Raises `ValueError` if the user chose another scheme."""
        if self.scheme != "udp" and not self.bare:
            raise ValueError(f"--udp is short for udp: before a bare address; this one says {self.scheme}: itself")
        return replace(self, scheme="udp")

    def __str__(self) -> str:
        """Write it as a user would, made safe for a terminal."""
        if self.path:
            return f"{self.scheme}:{escape(self.path)}"
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        # A host may be called udp; then the scheme has to be said.
        return place if self.scheme == "tcp" and self.host not in _SCHEMES else f"{self.scheme}:{place}"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= _HIGHEST_PORT):
        raise ValueError(f'"{escape(text)}" is no port, a number from 1 to {_HIGHEST_PORT}')
    return int(text)


def _place(text: str) -> tuple[str, int]:
    if text.isascii() and text.isdecimal():
        return _HERE, _port(text)
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        brackets = "; an IPv6 address goes in brackets" if text.count(":") > 1 and "[" not in text else ""
        raise ValueError(f'"{escape(text)}" is no HOST:PORT{brackets}')
    host = match["v6"] or match["host"]
    if match["v6"]:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f'"{escape(host)}" is no IPv6 address') from None
    if any(character.isspace() or is_unsafe(character) for character in host):
        raise ValueError(f'"{escape(host)}" is no host name')
    return host, _port(match["port"])


def parse_server(text: str) -> ServerAddress:
    """Read a server's address. Raises `ValueError`, in one line, with the accepted forms."""
    text = text.strip()
    word, _, rest = text.partition(":")
    scheme = _SCHEMES.get(word) if rest else None
    try:
        if scheme is None:
            return ServerAddress("tcp", *_place(text), bare=True)
        if scheme not in ("unix", "unixgram"):
            return ServerAddress(scheme, *_place(rest))
        if "\0" in rest:
            raise ValueError("a path has no NUL character")
        return ServerAddress(scheme, path=rest)
    except ValueError as error:
        raise ValueError(f"{error}; an address is {FORMS}") from None
