"""Reads the addresses that users write. Pure text: nothing is opened, resolved or imported.

9001   127.0.0.1:9001   [::1]:9001      for streams and datagrams
tls:PORT:cert=FILE:key=FILE[:interface=ADDR]  tls:PORT:directory=DIR    for streams
tcp:…  tcp6:…  unix:…  ssl:…  haproxy:…    Twisted server endpoint strings, for streams
udp:PORT[:interface=ADDR]  udp6:…  unixgram:PATH[:mode=660]    for datagrams
systemd:NAME    for both: a socket that systemd passes
guard:LIMIT=VALUE:…:ADDRESS  proxy:trust=CIDR,…[:timeout=SECONDS]:ADDRESS    before any of them
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from netsvc.interfaces import Kind
from netsvc.text import is_unsafe

__all__ = ["TLS", "Address", "Proxy", "parse_address"]

_FORMS: Mapping[Kind, str] = {
    "stream": "a port, HOST:PORT, [IPv6]:PORT, or an endpoint (tcp:PORT, unix:PATH, tls:PORT:…, systemd:NAME)",
    "datagram": "a port, HOST:PORT, [IPv6]:PORT, udp:PORT[:interface=ADDR], udp6:…, unixgram:PATH or systemd:NAME",
}
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\s:\[\]]+)):(?P<port>\d+)")
_SCHEME = re.compile(r"[a-z][a-z0-9]*(?=:.)")
#: Twisted's own. Those of an endpoint plugin are not known here; `name:9001` is a host for them.
_STREAM_SCHEMES = {"haproxy", "ssl", "stdio", "systemd", "tcp", "tcp6", "tls", "unix"}
_DATAGRAM_SCHEMES = {
    "udp": {"port", "interface"},
    "udp6": {"port", "interface"},
    "unixgram": {"path", "mode"},
    "systemd": set(),
}
_HIGHEST_PORT = 65535
#: Seconds for a proxy to say whom it speaks for. It does so at once.
_PROXY_TIMEOUT = 5.0
_LONGEST_PROXY_TIMEOUT = 3600.0


@dataclass(frozen=True)
class TLS:
    """Where the certificate of a `tls:` address is: a file and its key, or a directory with one for each name."""

    cert: str | None = None
    key: str | None = None
    directory: str | None = None


@dataclass(frozen=True)
class Proxy:
    """Who may say, by the PROXY protocol, for whom it speaks: networks; and how many seconds it has to do so."""

    trust: tuple[str, ...]
    timeout: float = _PROXY_TIMEOUT


@dataclass(frozen=True)
class Address:
    """Where a listener listens.

    `text` is what the user wrote. `scheme` is `inet` for a port with an optional `host` (None: every
    interface, IPv4 and IPv6), else the endpoint's scheme. `arguments` are those of `systemd:` and of a datagram
    endpoint; another stream endpoint is kept whole in `text`, for Twisted to read, and `host` and `port` tell where
    tcp:, tcp6: and ssl: listen. `tls` is there for our own `tls:` addresses, whose scheme is `inet`. `limits` are
    those of `guard:`, as they were written, and `proxy` what `proxy:` says; `place` is the rest of `text`, without
    these two.
    """

    text: str
    kind: Kind
    scheme: str
    host: str | None = None
    port: int = 0
    arguments: Mapping[str, str] = field(default_factory=dict, hash=False)
    tls: TLS | None = None
    proxy: Proxy | None = None
    limits: Mapping[str, str] = field(default_factory=dict, hash=False)
    place: str = ""

    def __post_init__(self) -> None:
        if not self.place:
            object.__setattr__(self, "place", self.text)

    @property
    def note(self) -> str:
        """What a line that says where it listens adds: ` (TLS, behind a proxy)`, or nothing."""
        notes = ["TLS"] if self.tls is not None or self.scheme in ("ssl", "tls") else []
        notes += ["behind a proxy"] if self.proxy is not None or self.scheme == "haproxy" else []
        return f" ({', '.join(notes)})" if notes else ""


def _port(text: str) -> int:
    # The length first: Python refuses to read a number of thousands of digits, with words of its own.
    if not (text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= 5 and int(text[-5:]) <= _HIGHEST_PORT):
        raise ValueError(f"a port is a number from 0 to {_HIGHEST_PORT}")
    return int(text[-5:])


def _endpoint_arguments(text: str) -> tuple[list[str], dict[str, str]]:
    r"""Split an endpoint string at its colons, as Twisted does; `\:`, `\=` and `\\` stand for themselves."""
    positional: list[str] = []
    named: dict[str, str] = {}
    name: str | None = None
    word, characters = "", iter(f"{text}:")
    for character in characters:
        if character == "\\":
            word += next(characters)
        elif character == "=" and name is None:
            # Twisted reads `a=b` as a named argument wherever it stands.
            name, word = word, ""
        elif character != ":":
            word += character
        else:
            if name is None:
                positional.append(word)
            else:
                named[name] = word
            name, word = None, ""
    if word:
        raise ValueError("a backslash stands before another character")
    return positional, named


def _datagram_endpoint(text: str, scheme: str) -> Address:
    positional, arguments = _endpoint_arguments(text)
    names = ["path", "mode"] if scheme == "unixgram" else ["port", "interface"]
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
        return Address(text, "datagram", "inet", host, _port(arguments.get("port", "")))
    if scheme == "unixgram" and not arguments.get("path"):
        raise ValueError("unixgram: needs a path")
    if scheme == "unixgram" and not re.fullmatch(r"[0-7]{3,4}", arguments.get("mode", "666")):
        raise ValueError("mode is an octal number such as 660")
    return Address(text, "datagram", scheme, arguments=arguments)


def _systemd(text: str, kind: Kind) -> Address:
    """Read `systemd:NAME`, and what Twisted's endpoint takes, whose domain the socket tells by itself."""
    positional, arguments = _endpoint_arguments(text)
    if len(positional) == 2 and not arguments:
        return Address(text, kind, "systemd", arguments={"name": positional[1]})
    arguments = {**dict(zip(("domain", "index"), positional[1:], strict=False)), **arguments}
    if len(positional) > 3 or arguments.keys() - {"domain", "index", "name"}:
        raise ValueError("systemd: takes the name of a socket, FileDescriptorName= of its .socket unit")
    if arguments.get("domain", "INET") not in ("INET", "INET6", "UNIX"):
        raise ValueError("systemd: needs domain=INET, INET6 or UNIX, or none")
    if bool(arguments.get("index")) == bool(arguments.get("name")):
        raise ValueError("systemd: needs the name of a socket, or index=NUMBER")
    if not re.fullmatch("[0-9]{1,4}", arguments.get("index", "0")):
        raise ValueError("index is the place of a socket among those that systemd passes, from 0")
    return Address(text, kind, "systemd", arguments=arguments)


def _stream_endpoint(text: str, scheme: str) -> Address:
    if scheme not in ("tcp", "tcp6", "ssl"):
        return Address(text, "stream", scheme)
    positional, arguments = _endpoint_arguments(text)
    port = _port(arguments.get("port") or "".join(positional[1:2]))
    # Twisted's tcp6: on every interface takes IPv4 along, as a bare port does.
    host = arguments.get("interface") or (None if scheme == "tcp6" else "0.0.0.0")
    return Address(text, "stream", scheme, host, port)


_PREFIX = re.compile(r"(guard|proxy):")
_PREFIX_ARGUMENT = re.compile(r"(?P<name>[a-z]+)=(?P<value>(?:[^\\:]|\\.)*):")


def _strip_prefixes(text: str) -> tuple[str, dict[str, str], dict[str, str] | None]:
    """Take `guard:` and `proxy:` off an address; return the rest, and the arguments of each."""
    limits: dict[str, str] = {}
    proxy: dict[str, str] | None = None
    while prefix := _PREFIX.match(text):
        text = text[prefix.end() :]
        arguments: dict[str, str] = {}
        while argument := _PREFIX_ARGUMENT.match(text):
            arguments[argument["name"]] = re.sub(r"\\(.)", r"\1", argument["value"])
            text = text[argument.end() :]
        if not arguments:
            form = "guard:LIMIT=VALUE:ADDRESS" if prefix[1] == "guard" else "proxy:trust=CIDR,…:ADDRESS"
            raise ValueError(f"write {form}, with \\: for a colon in a value")
        if prefix[1] == "guard":
            limits |= arguments
        else:
            proxy = (proxy or {}) | arguments
    return text, limits, proxy


def _proxy(arguments: Mapping[str, str], kind: Kind) -> Proxy:
    if kind == "datagram":
        raise ValueError("proxy: is not for datagrams")
    if unknown := sorted(arguments.keys() - {"trust", "timeout"}):
        raise ValueError(f"proxy: has no argument {unknown[0]}; it takes trust and timeout")
    trust = tuple(item.strip() for item in arguments.get("trust", "").split(",") if item.strip())
    if not trust:
        raise ValueError(
            "proxy: needs trust=CIDR,…: the proxies that are believed, or unix; write \\: for a colon, as in \\:\\:1"
        )
    for item in trust:
        # Whoever can open a UNIX socket has been let in by the mode of its file.
        if item != "unix":
            try:
                ipaddress.ip_network(item, strict=False)
            except ValueError:
                raise ValueError(
                    f"trust={item}: it takes addresses and networks such as 10.0.0.0/8, and unix; "
                    "write \\: for a colon, as in \\:\\:1"
                ) from None
    try:
        timeout = float(arguments.get("timeout", _PROXY_TIMEOUT))
    except ValueError:
        timeout = 0.0
    if not 0.1 <= timeout <= _LONGEST_PROXY_TIMEOUT:
        raise ValueError(f"timeout is a number of seconds from 0.1 to {_LONGEST_PROXY_TIMEOUT:g}")
    return Proxy(trust, timeout)


def _tls(text: str) -> Address:
    positional, arguments = _endpoint_arguments(text)
    if unknown := sorted(arguments.keys() - {"port", "cert", "key", "directory", "interface"}):
        raise ValueError(f"tls: has no argument {unknown[0]}; it takes cert, key, directory and interface")
    if len(positional) > 2:
        raise ValueError("write tls:PORT:cert=FILE:key=FILE, and interface=ADDR for one address alone")
    cert, key, directory = (arguments.get(name) or None for name in ("cert", "key", "directory"))
    if bool(directory) == bool(cert or key) or (key and not cert):
        raise ValueError("tls: needs cert=FILE and key=FILE, or directory=DIR")
    host = arguments.get("interface") or None
    if host is not None:
        ipaddress.ip_address(host.partition("%")[0])
    port = _port(arguments.get("port") or "".join(positional[1:2]))
    # A certificate's file may have its key as well.
    tls = TLS(cert, (key or cert) if cert else None, directory)
    return Address(text, "stream", "inet", host, port, tls=tls)


def parse_address(text: str, kind: Kind) -> Address:
    """Read an address for a stream or a datagram listener. Raises `ValueError` with the accepted forms."""
    text = text.strip()
    try:
        if any(map(is_unsafe, text)):
            raise ValueError("an address has no control characters")
        rest, limits, proxy = _strip_prefixes(text)
        proxied = None if proxy is None else _proxy(proxy, kind)
    except ValueError as error:
        raise ValueError(f"{error}; an address is {_FORMS[kind]}") from None
    address = _parse_place(rest, kind)
    if rest == text:
        return address
    return replace(address, text=text, place=rest, limits=limits, proxy=proxied)


def _parse_place(text: str, kind: Kind) -> Address:
    try:
        if text.isascii() and text.isdecimal():
            return Address(text, kind, "inet", None, _port(text))
        own, others = _STREAM_SCHEMES, set(_DATAGRAM_SCHEMES)
        if kind == "datagram":
            own, others = others, own
        found = _SCHEME.match(text)
        scheme = found[0] if found else ""
        if scheme in others - own:
            raise ValueError(f"{scheme}: is not for {kind}s")
        if scheme not in own and (match := _HOST_PORT.fullmatch(text)):
            if match["v6"]:
                ipaddress.IPv6Address(match["v6"])
            return Address(text, kind, "inet", match["v6"] or match["host"], _port(match["port"]))
        if scheme == "systemd":
            return _systemd(text, kind)
        if kind == "datagram" and scheme in own:
            return _datagram_endpoint(text, scheme)
        # Twisted's own `tls:` begins with a directory, and has another endpoint after it.
        if kind == "stream" and re.match(r"tls:(\d|port=)", text):
            return _tls(text)
        if kind == "stream" and scheme not in ("", "inet"):
            return _stream_endpoint(text, scheme)
    except ValueError as error:
        raise ValueError(f"{error}; an address is {_FORMS[kind]}") from None
    raise ValueError(f"an address is {_FORMS[kind]}")
