r"""The grammar of addresses: where a service listens, and where a client connects. Nothing is opened or resolved.

A service listens at

    9001   127.0.0.1:9001   [::1]:9001      streams and datagrams
    systemd:NAME                            streams and datagrams: a socket that systemd passes
    tls:PORT:cert=FILE:key=FILE[:interface=ADDR]   tls:PORT:directory=DIR       streams
    tcp:…  tcp6:…  unix:…  ssl:…  haproxy:…        Twisted server endpoint strings, streams
    udp:PORT[:interface=ADDR]  udp6:…  unixgram:PATH[:mode=660]                 datagrams
    239.1.2.3:9001   239.1.2.3%eth0:9001           datagrams: a multicast group, which is joined at an interface

The path @NAME is a UNIX socket without a file, in the abstract namespace (unix(7)); write ./@NAME for a file.

with guard:LIMIT=VALUE:… or proxy:trust=CIDR,…[:timeout=SECONDS]: before any of them. The parts of an address are
separated by colons; `\:`, `\=` and `\\` are literal characters.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from netsvc.base.hosts import is_loopback
from netsvc.base.text import escape, host_port, is_unsafe
from netsvc.base.values import Kind, seconds

_FORMS: Mapping[Kind, str] = {
    "stream": "a port, HOST:PORT, [IPv6]:PORT, or an endpoint (tcp:PORT, unix:PATH, tls:PORT:…, systemd:NAME)",
    "datagram": "a port, HOST:PORT, [IPv6]:PORT, udp:PORT[:interface=ADDR], udp6:…, unixgram:PATH or systemd:NAME",
}
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^\s:\[\]/@]+)):(?P<port>\d+)")
_SCHEME = re.compile(r"[a-z][a-z0-9]*(?=:.)")
#: One part of an endpoint: `value`, or `name=value`.
_PART = re.compile(r"(?:(?P<name>(?:[^\\:=]|\\.)*)(?P<equals>=))?(?P<value>(?:[^\\:]|\\.)*)(?P<end>:|$)", re.S)
#: Twisted's own. The prefixes of endpoint plugins are not known here; `name:9001` is a host for them.
_STREAM_SCHEMES = {"haproxy", "ssl", "stdio", "systemd", "tcp", "tcp6", "tls", "unix"}
#: The arguments of datagram endpoints, in the order in which they may be given without their names.
_DATAGRAM_SCHEMES: Mapping[str, Sequence[str]] = {
    "udp": ("port", "interface"),
    "udp6": ("port", "interface"),
    "unixgram": ("path", "mode"),
    "systemd": (),
}
_HIGHEST_PORT = 65535
#: Characters and parts of an address. Twisted parses an endpoint in an endpoint again for each one around it: the time
#: grows with the product of the two.
LONGEST_ADDRESS, MOST_PARTS = 4096, 64
#: Bytes: `sun_path` of unix(7), without the NUL at its end.
_LONGEST_SOCKET_PATH = 107
#: The argument of listen(2) is an int.
_LARGEST_BACKLOG = 2**31 - 1
#: Characters of a host name, and of one label of it (RFC 1035, section 2.3.4).
_LONGEST_HOST, _LONGEST_LABEL = 253, 63
#: Seconds in which a proxy must send its header. It sends it at once.
_PROXY_TIMEOUT = 5.0
_proxy_seconds = seconds(0.1, 3600)


@dataclass(frozen=True)
class TLS:
    """The certificate of a `tls:` address: a file and its key, or a directory with one for each name."""

    cert: str | None = None
    key: str | None = None
    directory: str | None = None


@dataclass(frozen=True)
class Proxy:
    """The networks whose PROXY headers are trusted, and in how many seconds one must have arrived."""

    trust: tuple[str, ...]
    timeout: float = _PROXY_TIMEOUT


@dataclass(frozen=True)
class Address:
    """Where a listener listens.

    `text` is what the user wrote, without `guard:`, whose values are in `limits`, not yet parsed. `scheme` is `inet`
    for a port with an optional `host` (None: every interface, IPv4 and IPv6), else the endpoint's scheme. `arguments`
    are those of `systemd:` and of a datagram endpoint. Another stream endpoint is left to Twisted, except for the
    `host` and `port` of tcp:, tcp6: and ssl:. `tls` is set for our own `tls:` addresses, whose scheme is `inet`, and
    `proxy` for `proxy:`. `endpoint` is `text` without `proxy:`.
    """

    text: str
    kind: Kind
    scheme: str
    host: str | None = None
    port: int = 0
    arguments: Mapping[str, str] = field(default_factory=dict, hash=False)
    tls: TLS | None = None
    proxy: Proxy | None = None
    limits: Mapping[str, str] = field(default_factory=dict, compare=False)
    endpoint: str = ""

    def __post_init__(self) -> None:
        if not self.endpoint:
            object.__setattr__(self, "endpoint", self.text)

    @property
    def note(self) -> str:
        """What is worth knowing beside the host and port: ` (TLS, behind a proxy)`, or nothing."""
        notes = ["TLS"] if self.tls is not None or self.scheme in ("ssl", "tls") else []
        notes += ["behind a proxy"] if self.proxy is not None or self.scheme == "haproxy" else []
        return f" ({', '.join(notes)})" if notes else ""


def _parts(text: str) -> list[tuple[str | None, str]]:
    """Split an endpoint at its colons, as Twisted does, into values with their names, if they have any."""
    parts: list[tuple[str | None, str]] = []
    position = 0
    while match := _PART.match(text, position):
        parts.append((_unescape(match["name"]) if match["equals"] else None, _unescape(match["value"])))
        position = match.end()
        if not match["end"]:
            return parts
    raise ValueError("a backslash must be followed by the character that it escapes")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.S)


def _join(parts: Iterable[tuple[str | None, str]]) -> str:
    def escaped(text: str, characters: str) -> str:
        return re.sub(rf"([\\{characters}])", r"\\\1", text)

    return ":".join(
        escaped(value, ":=") if name is None else f"{escaped(name, ':=')}={escaped(value, ':')}"
        for name, value in parts
    )


def split_endpoint(text: str) -> tuple[list[str], dict[str, str]]:
    """Split an endpoint into its positional and its named arguments. Raises `ValueError`."""
    parts = _parts(text)
    return [value for name, value in parts if name is None], {name: value for name, value in parts if name is not None}


def join_endpoint(positional: Iterable[str], named: Mapping[str, str]) -> str:
    """Write an endpoint, so that `split_endpoint` and Twisted read these arguments."""
    return _join([*((None, value) for value in positional), *named.items()])


def _port(text: str, lowest: int = 0) -> int:
    # The length first: Python refuses to convert thousands of digits, with an error of its own.
    if text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= 5 and lowest <= int(text[-5:]) <= _HIGHEST_PORT:
        return int(text[-5:])
    raise ValueError(f"a port is a number from {lowest} to {_HIGHEST_PORT}")


def _host_port(text: str, lowest: int = 0) -> tuple[str | None, int] | None:
    """Read PORT, HOST:PORT or [IPv6]:PORT; return None if it is none of these."""
    if text.isascii() and text.isdecimal():
        return None, _port(text, lowest)
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        return None
    if match["v6"]:
        try:
            ipaddress.IPv6Address(match["v6"])
        except ValueError:
            raise ValueError(f'"{escape(match["v6"])}" is not an IPv6 address') from None
    if match["host"]:
        _check_host(match["host"])
    return match["v6"] or match["host"], _port(match["port"], lowest)


def _check_host(host: str) -> None:
    """Raise `ValueError` for a name that no resolver accepts."""
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
        labels = name.removesuffix(".").split(".")
        valid = len(name) <= _LONGEST_HOST and all(0 < len(label) <= _LONGEST_LABEL for label in labels)
    except UnicodeError:
        valid = False
    if not valid:
        raise ValueError(
            f'"{escape(host)}" is not a host name: it has at most {_LONGEST_HOST} characters, '
            f"and from 1 to {_LONGEST_LABEL} between two dots"
        )


def _check_socket_path(path: str) -> None:
    """Raise `ValueError` for a path that no UNIX socket can have."""
    # A name in the abstract namespace has no NUL at its end.
    longest = _LONGEST_SOCKET_PATH + path.startswith("@")
    if (length := len(os.fsencode(path))) > longest:
        raise ValueError(f"the path of a UNIX socket has at most {longest} bytes, this one {length}")


def _only(scheme: str, arguments: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"{scheme}: has no argument {unknown[0]}; it takes {', '.join(sorted(known))}")


def _datagram_endpoint(text: str, scheme: str) -> Address:
    positional, arguments = split_endpoint(text)
    names = _DATAGRAM_SCHEMES[scheme]
    if len(positional) - 1 > len(names):
        raise ValueError(f"too many arguments after {scheme}:")
    arguments = {**dict(zip(names, positional[1:], strict=False)), **arguments}
    _only(scheme, arguments, names)
    if scheme in ("udp", "udp6"):
        host = arguments.get("interface") or ("::" if scheme == "udp6" else "0.0.0.0")
        version = 6 if scheme == "udp6" else 4
        if ipaddress.ip_address(host.partition("%")[0]).version != version:
            raise ValueError(f"{host} is not an IPv{version} address")
        return Address(text, "datagram", "inet", host, _port(arguments.get("port", "")))
    if not arguments.get("path"):
        raise ValueError("unixgram: needs a path")
    if not re.fullmatch(r"[0-7]{3,4}", arguments.get("mode", "666")):
        raise ValueError("mode is an octal number such as 660")
    return Address(text, "datagram", scheme, arguments=arguments)


def _systemd(text: str, kind: Kind) -> Address:
    """Read `systemd:NAME`, and the arguments of Twisted's endpoint, whose domain is not needed."""
    positional, arguments = split_endpoint(text)
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
        raise ValueError("index is the number of a socket that systemd passes, from 0")
    return Address(text, kind, "systemd", arguments=arguments)


def _stream_endpoint(text: str, scheme: str) -> Address:
    if scheme not in ("tcp", "tcp6", "ssl"):
        return Address(text, "stream", scheme)
    positional, arguments = split_endpoint(text)
    port = _port(arguments.get("port") or "".join(positional[1:2]))
    # Twisted's tcp6: on every interface also serves IPv4, as a bare port does.
    host = arguments.get("interface") or (None if scheme == "tcp6" else "0.0.0.0")
    return Address(text, "stream", scheme, host, port)


def _tls(text: str) -> Address:
    positional, arguments = split_endpoint(text)
    _only("tls", arguments, ("port", "cert", "key", "directory", "interface"))
    if len(positional) > 2:
        raise ValueError("write tls:PORT:cert=FILE:key=FILE, and interface=ADDR for a single address")
    cert, key, directory = (arguments.get(name) or None for name in ("cert", "key", "directory"))
    if bool(directory) == bool(cert or key) or (key and not cert):
        raise ValueError("tls: needs cert=FILE and key=FILE, or directory=DIR")
    host = arguments.get("interface") or None
    if host is not None:
        ipaddress.ip_address(host.partition("%")[0])
    port = _port(arguments.get("port") or "".join(positional[1:2]))
    # A certificate's file may also hold its key.
    tls = TLS(cert, (key or cert) if cert else None, directory)
    return Address(text, "stream", "inet", host, port, tls=tls)


def _proxy(arguments: Mapping[str, str], kind: Kind) -> Proxy:
    if kind == "datagram":
        # A PROXY header of version 2 can describe a datagram, but is trusted by the address that it comes from.
        raise ValueError(
            "proxy: is not for datagrams: their source can be forged, and with it the header of a trusted proxy; "
            "let the proxy keep the source of the datagrams, and leave out proxy:"
        )
    _only("proxy", arguments, ("trust", "timeout"))
    trust = tuple(item.strip() for item in arguments.get("trust", "").split(",") if item.strip())
    if not trust:
        raise ValueError(
            r"proxy: needs trust=CIDR,…, the addresses of trusted proxies, or unix; write \: for a colon, as in \:\:1"
        )
    for item in trust:
        # Access to a UNIX socket is controlled by the mode of its file.
        if item != "unix":
            try:
                ipaddress.ip_network(item, strict=False)
            except ValueError:
                raise ValueError(
                    f"trust={item}: write addresses and networks such as 10.0.0.0/8, or unix; "
                    r"write \: for a colon, as in \:\:1"
                ) from None
    try:
        return Proxy(trust, _proxy_seconds(arguments.get("timeout", _PROXY_TIMEOUT)))
    except ValueError as error:
        raise ValueError(f"timeout: {error}") from None


def _strip_prefixes(text: str) -> tuple[str, str, dict[str, str], dict[str, str] | None]:
    """Split an address into its `proxy:` prefixes and the rest; then the arguments of `guard:` and of `proxy:`."""
    prefixes = ""
    limits: dict[str, str] = {}
    proxy: dict[str, str] | None = None
    while prefix := re.match(r"(guard|proxy):", text):
        start = position = prefix.end()
        arguments: dict[str, str] = {}
        while (part := _PART.match(text, position)) and part["end"] and re.fullmatch("[a-z]+", part["name"] or ""):
            arguments[part["name"]] = _unescape(part["value"])
            position = part.end()
        if position == start:
            form = "guard:LIMIT=VALUE:ADDRESS" if prefix[1] == "guard" else "proxy:trust=CIDR,…:ADDRESS"
            raise ValueError(rf"write {form}, with \: for a colon in a value")
        if prefix[1] == "guard":
            limits |= arguments
        else:
            proxy = (proxy or {}) | arguments
            prefixes += text[:position]
        text = text[position:]
    return prefixes, text, limits, proxy


def is_reachable(address: Address) -> bool:
    """Return whether other machines can reach an address; in doubt they can."""
    if address.scheme == "unix" or address.arguments.get("domain") == "UNIX":
        return False
    # A name may resolve to another address tomorrow.
    return not is_loopback(address.host or "")


def is_plain(address: Address) -> bool:
    """Return whether others can read what clients send to an address; in doubt they can.

    Behind `proxy:` only the header of a connection shows it: see `netsvc.stream.is_confidential`.
    """
    return address.tls is None and address.proxy is None and address.scheme != "ssl" and is_reachable(address)


def parse_address(text: str, kind: Kind) -> Address:
    """Read an address for a stream or a datagram listener. Raises `ValueError` with the accepted forms."""
    text = text.strip()
    try:
        if any(map(is_unsafe, text)):
            raise ValueError("an address has no control characters")
        if len(text) > LONGEST_ADDRESS or len(_parts(text)) > MOST_PARTS:
            raise ValueError(f"at most {LONGEST_ADDRESS} characters, and {MOST_PARTS} parts between colons")
        prefixes, rest, limits, proxy = _strip_prefixes(text)
        proxied = None if proxy is None else _proxy(proxy, kind)
        address = _parse_endpoint(rest, kind)
        if address.scheme not in ("inet", "systemd"):
            _check_arguments(rest)
        if kind == "stream" and is_group(address.host or ""):
            raise ValueError(f"{address.host} is a multicast group, which is for datagrams")
    except ValueError as error:
        reason = f"{error}; " if str(error) else ""
        raise ValueError(f"{reason}an address is {_FORMS[kind]}") from None
    return replace(address, text=f"{prefixes}{rest}", endpoint=rest, limits=limits, proxy=proxied)


def _check_arguments(text: str) -> None:
    """Raise `ValueError` for what an endpoint, or one inside it, accepts and the system does not."""
    is_abstract = False
    for name, value, what in _located(_parts(text)):
        if is_abstract and name in (None, "mode"):
            raise ValueError(
                "an abstract socket has no mode, and every user of the machine may use it; leave out the mode"
            )
        if what == "socket":
            _check_socket_path(value)
            is_abstract = value.startswith("@")
            if value == "@":
                raise ValueError("@ needs the name of an abstract socket, as in unix:@echo")
        elif name == "backlog" and value.isdecimal() and int(value.lstrip("0")[:12] or "0") > _LARGEST_BACKLOG:
            raise ValueError(f"backlog is a number up to {_LARGEST_BACKLOG}")


def _parse_endpoint(text: str, kind: Kind) -> Address:
    own: Iterable[str] = _STREAM_SCHEMES
    others: Iterable[str] = _DATAGRAM_SCHEMES
    if kind == "datagram":
        own, others = others, own
    found = _SCHEME.match(text)
    scheme = found[0] if found else ""
    if scheme in others and scheme not in own:
        raise ValueError(f"{scheme}: is not for {kind}s")
    if scheme not in own and (host_and_port := _host_port(text)):
        return Address(text, kind, "inet", *host_and_port)
    if scheme == "systemd":
        return _systemd(text, kind)
    if kind == "datagram" and scheme in own:
        return _datagram_endpoint(text, scheme)
    # Twisted's own `tls:` begins with a directory, and has another endpoint after it.
    if kind == "stream" and re.match(r"tls:(\d|port=)", text):
        return _tls(text)
    if kind == "stream" and scheme not in ("", "inet"):
        return _stream_endpoint(text, scheme)
    raise ValueError


#: Named arguments of addresses that are files, sockets, and lists in which `@FILE` may stand.
_FILES = {"cert", "key", "directory", "privateKey", "certKey", "extraCertChain", "dhParameters"}
_SOCKETS = {"path", "address"}
_NETWORKS = {"allow", "deny"}
#: Which positional arguments of a scheme are paths.
_PATHS = {"unix": (1,), "unixgram": (1,), "ssl": (2, 3)}


def is_group(host: str) -> bool:
    """Return whether a host, with its interface if one is given (`239.1.2.3%eth0`), is a multicast group."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_multicast
    except ValueError:
        return False


def bound_path(path: str) -> str:
    """Return the path of a UNIX socket as the system takes it: `@NAME` is a name without a file (unix(7))."""
    return f"\0{path[1:]}" if path.startswith("@") else path


def written_path(path: str) -> str:
    """Return the path of a UNIX socket as a user writes it; the reverse of `bound_path`."""
    return f"@{path[1:]}" if path.startswith("\0") else path


def resolve_path(path: str, directory: str) -> str:
    """Return a path as seen from a directory; an empty one is returned unchanged."""
    return os.path.join(directory, path.removeprefix("./")) if path else path


def resolve_networks(value: object, directory: str) -> list[str]:
    """Resolve every `@FILE` in the value of a limit, a list or text with commas. Returns a list."""
    items: Sequence[object] = value if isinstance(value, list) else str(value).split(",")
    texts = [str(item).strip() for item in items]
    return [f"@{resolve_path(text[1:], directory)}" if text.startswith("@") else text for text in texts]


def resolve_address(text: str, directory: str) -> str:
    """Resolve the files and sockets that an address names, as seen from a directory. Any text is accepted."""
    try:
        parts = _parts(text)
    except ValueError:
        return text
    resolved: list[tuple[str | None, str]] = []
    for name, value, what in _located(parts):
        networks = ",".join(resolve_networks(value, directory)) if name in _NETWORKS else value
        is_path = what and not (what == "socket" and value.startswith("@"))
        resolved.append((name, resolve_path(value, directory) if is_path else networks))
    return _join(resolved)


def _located(
    parts: Iterable[tuple[str | None, str]],
) -> Iterator[tuple[str | None, str, Literal["", "file", "socket"]]]:
    """Say for each part of an endpoint, and of one inside it, what its value is the path of, if of anything."""
    scheme, position = "", 0
    for name, value in parts:
        position += name is None
        is_unix = scheme in ("unix", "unixgram")
        is_path = name in _FILES or (name in _SOCKETS and is_unix)
        if name is None:
            is_path = position in _PATHS.get(scheme, ())
            if not is_path and value in _PATHS:
                scheme, position = value, 0
        yield name, value, ("socket" if is_unix and name not in _FILES else "file") if is_path else ""


_Scheme = Literal["tcp", "udp", "tls", "unix", "unixgram"]

#: How a client writes an address; every error about one ends with it.
SERVER_FORMS = "PORT, HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT, udp:HOST:PORT, tls:HOST:PORT, unix:PATH or unixgram:PATH"
_SERVER_SCHEMES: Mapping[str, _Scheme] = {
    "tcp": "tcp",
    "udp": "udp",
    "tls": "tls",
    # Twisted's name for it.
    "ssl": "tls",
    "unix": "unix",
    "unixgram": "unixgram",
}


@dataclass(frozen=True)
class ServerAddress:
    """Where a client connects: `scheme` is tcp, udp or tls (with `host` and `port`), unix or unixgram (with `path`).

    `bare` means that the user gave no scheme, so that `--udp` may choose one.
    """

    scheme: _Scheme
    host: str = ""
    port: int = 0
    path: str = ""
    bare: bool = False

    @property
    def is_datagram(self) -> bool:
        """Whether it takes datagrams."""
        return self.scheme in ("udp", "unixgram")

    def over_udp(self) -> ServerAddress:
        """Return the same address for datagrams. Raises `ValueError` if the user gave another scheme."""
        if self.scheme != "udp" and not self.bare:
            raise ValueError(f"--udp is for an address without a scheme; this one has {self.scheme}:")
        return replace(self, scheme="udp")

    def __str__(self) -> str:
        """Write it as a user would, made safe for a terminal."""
        if self.path:
            return f"{self.scheme}:{escape(self.path)}"
        text = host_port(self.host, self.port)
        # A host may be called udp; then the scheme is needed.
        return text if self.scheme == "tcp" and self.host not in _SERVER_SCHEMES else f"{self.scheme}:{text}"


def parse_server(text: str) -> ServerAddress:
    """Read the address of a server to connect to. Raises `ValueError`, in one line, with the accepted forms."""
    text = text.strip()
    first, _, rest = text.partition(":")
    scheme = _SERVER_SCHEMES.get(first) if rest else None
    try:
        if scheme in ("unix", "unixgram"):
            if "\0" in rest:
                raise ValueError("a path has no NUL character")
            _check_socket_path(rest)
            return ServerAddress(scheme, path=rest)
        place = text if scheme is None else rest
        found = None if any(map(is_unsafe, place)) else _host_port(place, lowest=1)
        if found is None:
            brackets = "; an IPv6 address goes in brackets" if place.count(":") > 1 and "[" not in place else ""
            raise ValueError(f'"{escape(place)}" is not HOST:PORT{brackets}')
        return ServerAddress(scheme or "tcp", found[0] or "127.0.0.1", found[1], bare=scheme is None)
    except ValueError as error:
        raise ValueError(f"{error}; an address is {SERVER_FORMS}") from None
