"""Reads the addresses that users write. Pure text: nothing is opened, resolved or imported.

9001   127.0.0.1:9001   [::1]:9001      for streams and datagrams
tcp:…  tcp6:…  unix:…  ssl:…  systemd:…  haproxy:…    Twisted server endpoint strings, for streams
udp:PORT[:interface=ADDR]  udp6:…  unixgram:PATH[:mode=660]  systemd:domain=INET:name=…    for datagrams
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from netsvc.interfaces import Kind

__all__ = ["Address", "parse_address"]

_FORMS: Mapping[Kind, str] = {
    "stream": "a port, HOST:PORT, [IPv6]:PORT, or an endpoint (tcp:PORT, unix:PATH, ssl:PORT:…, systemd:…)",
    "datagram": "a port, HOST:PORT, [IPv6]:PORT, udp:PORT[:interface=ADDR], udp6:…, unixgram:PATH or systemd:…",
}
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d+)")
_SCHEME = re.compile(r"[a-z][a-z0-9]*(?=:)")
_UNESCAPED_COLON = re.compile(r"(?<!\\)(?:\\\\)*:")
_DATAGRAM_SCHEMES = {
    "udp": {"port", "interface"},
    "udp6": {"port", "interface"},
    "unixgram": {"path", "mode"},
    "systemd": {"domain", "index", "name"},
}
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """Where a listener listens.

    `text` is what the user wrote. `scheme` is `inet` for a port with an optional `host` (None: every
    interface, IPv4 and IPv6), else the endpoint's scheme. `arguments` are those of a datagram endpoint; a
    stream endpoint is kept whole in `text`, for Twisted to read.
    """

    text: str
    kind: Kind
    scheme: str
    host: str | None = None
    port: int = 0
    arguments: Mapping[str, str] = field(default_factory=dict, hash=False)


def _port(text: str, kind: Kind) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > _HIGHEST_PORT:
        raise ValueError(f"a port is a number from 0 to {_HIGHEST_PORT}")
    return int(text)


def _endpoint_arguments(text: str) -> tuple[list[str], dict[str, str]]:
    r"""Split an endpoint string at its colons, as Twisted does: `\:` is a colon, `\\` a backslash."""
    words, word, characters = [], "", iter(text)
    for character in characters:
        if character == "\\":
            word += next(characters, "")
        elif character == ":":
            words.append(word)
            word = ""
        else:
            word += character
    words.append(word)
    # Twisted reads `a=b` as a named argument wherever it stands.
    positional = [word for word in words if "=" not in word]
    return positional, dict(word.split("=", 1) for word in words if "=" in word)


def _datagram_endpoint(text: str, scheme: str) -> Address:
    positional, arguments = _endpoint_arguments(text)
    names = {"udp": ["port", "interface"], "udp6": ["port", "interface"], "unixgram": ["path", "mode"]}.get(
        scheme, ["domain", "index"]
    )
    if len(positional) - 1 > len(names):
        raise ValueError(f"too many parts after {scheme}:")
    arguments = {**dict(zip(names, positional[1:], strict=False)), **arguments}
    unknown = sorted(set(arguments) - _DATAGRAM_SCHEMES[scheme])
    if unknown:
        raise ValueError(
            f"{scheme}: has no argument {unknown[0]}; it takes {', '.join(sorted(_DATAGRAM_SCHEMES[scheme]))}"
        )
    if scheme in ("udp", "udp6"):
        host = arguments.get("interface") or ("::" if scheme == "udp6" else "0.0.0.0")
        if ipaddress.ip_address(host.partition("%")[0]).version != (6 if scheme == "udp6" else 4):
            raise ValueError(f"{host} is no {'IPv6' if scheme == 'udp6' else 'IPv4'} address")
        return Address(text, "datagram", "inet", host, _port(arguments.get("port", ""), "datagram"))
    if scheme == "unixgram" and not arguments.get("path"):
        raise ValueError("unixgram: needs a path")
    if scheme == "unixgram" and not re.fullmatch(r"[0-7]{3,4}", arguments.get("mode", "666")):
        raise ValueError("mode is an octal number such as 660")
    if scheme == "systemd" and ("index" in arguments) == ("name" in arguments):
        raise ValueError("systemd: needs domain and either index or name")
    return Address(text, "datagram", scheme, arguments=arguments)


def parse_address(text: str, kind: Kind) -> Address:
    """Read an address for a stream or a datagram listener. Raises `ValueError` with the accepted forms."""
    text = text.strip()
    try:
        if text.isascii() and text.isdecimal():
            return Address(text, kind, "inet", None, _port(text, kind))
        if match := _HOST_PORT.fullmatch(text):
            scheme = match["host"] if kind == "stream" and match["host"] in ("tcp", "tcp6") else None
            if scheme is None and match["host"] not in _DATAGRAM_SCHEMES:
                host = match["v6"] or match["host"]
                if match["v6"]:
                    ipaddress.IPv6Address(host)
                return Address(text, kind, "inet", host, _port(match["port"], kind))
        if kind == "datagram" and text.partition(":")[0] in _DATAGRAM_SCHEMES and ":" in text:
            return _datagram_endpoint(text, text.partition(":")[0])
        if kind == "stream" and (found := _SCHEME.match(text)) and text != found[0] + ":":
            if found[0] in ("tcp", "tcp6"):
                positional, arguments = _endpoint_arguments(text)
                _port(arguments.get("port") or "".join(positional[1:2]), kind)
            return Address(text, kind, found[0])
    except ValueError as error:
        raise ValueError(f"{error}; an address is {_FORMS[kind]}") from None
    raise ValueError(f"an address is {_FORMS[kind]}")
