"""Parses the header of the PROXY protocol, version 1 or 2, without I/O.

The protocol is HAProxy's proxy-protocol.txt; sections cited here are of that document.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

#: A host and a port.
Endpoint = tuple[str, int]

#: The longest header of version 1 in bytes, including its CRLF (section 2.1).
LONGEST_V1 = 107
#: The longest header of version 2 in bytes that is accepted; enough for a client's certificate.
LONGEST_V2 = 16 + 4096

_V1 = b"PROXY "
_V1_FAMILIES = {b"TCP4": 4, b"TCP6": 6}
#: Without leading zeroes (section 2.1).
_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_HIGHEST_PORT = 65535

_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL, _PROXY = 0, 1
#: The size of the addresses by family (section 2.2): unspecified, IPv4, IPv6, UNIX.
_V2_ADDRESSES = (0, 12, 36, 216)
_V2_PROTOCOLS = 3
#: PP2_TYPE_SSL and PP2_CLIENT_SSL (section 2.2.6).
_SSL, _CLIENT_SSL = 0x20, 0x01


class HeaderError(ValueError):
    """The data does not begin with a valid PROXY header; the text is the reason."""


@dataclass(frozen=True)
class Header:
    """A header of `size` bytes with the source and the destination of the client's connection.

    Both are None if the header describes the proxy's own connection (LOCAL), an unknown one (UNKNOWN), or one without
    IP addresses. IPv4-mapped IPv6 addresses are written as IPv4. `encrypted`: the proxy says that the client uses TLS.
    """

    size: int
    source: Endpoint | None = None
    destination: Endpoint | None = None
    encrypted: bool = False


def parse_header(data: bytes) -> Header | None:
    """Parse the header at the beginning of `data`; return None if it is incomplete.

    Raises `HeaderError` as soon as no further bytes could complete a valid header. Never returns None for `LONGEST_V2`
    bytes or more.
    """
    return _parse_v1(data) if data[:1] == _V1[:1] else _parse_v2(data)


def _parse_v1(data: bytes) -> Header | None:
    if data[: len(_V1)] != _V1[: len(data)]:
        raise HeaderError("no PROXY header")
    end = data.find(b"\r\n", 0, LONGEST_V1)
    if end < 0:
        if len(data) >= LONGEST_V1:
            raise HeaderError(f"no end of the line in {LONGEST_V1} bytes")
        return None
    family, *words = data[len(_V1) : end].split(b" ")
    if family == b"UNKNOWN":
        # The rest of the line must be ignored (section 2.1).
        return Header(end + 2)
    if family not in _V1_FAMILIES or len(words) != 4:
        raise HeaderError("not PROXY, a family, two addresses and two ports")
    version = _V1_FAMILIES[family]
    source, destination, source_port, destination_port = words
    return Header(
        end + 2,
        (_v1_host(source, version), _v1_port(source_port)),
        (_v1_host(destination, version), _v1_port(destination_port)),
    )


def _v1_host(text: bytes, version: int) -> str:
    try:
        host = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        raise HeaderError("not an address") from None
    # The scope of a link-local address is meaningless on another machine.
    if host.version != version or b"%" in text:
        raise HeaderError("an address of another family")
    return _plain(host)


def _v1_port(text: bytes) -> int:
    if not _V1_PORT.fullmatch(text) or int(text) > _HIGHEST_PORT:
        raise HeaderError("not a port")
    return int(text)


def _parse_v2(data: bytes) -> Header | None:
    if data[: len(_V2)] != _V2[: len(data)]:
        raise HeaderError("no PROXY header")
    local = False
    if len(data) > 12:
        version, command = divmod(data[12], 16)
        if version != 2 or command not in (_LOCAL, _PROXY):
            raise HeaderError("an unknown version or command")
        local = command == _LOCAL
    if len(data) < 16:
        return None
    # For LOCAL even the family must be ignored (section 2.2).
    family, protocol = divmod(0 if local else data[13], 16)
    if family >= len(_V2_ADDRESSES) or protocol >= _V2_PROTOCOLS:
        raise HeaderError("an unknown family or protocol")
    length = int.from_bytes(data[14:16])
    size = 16 + length
    if size > LONGEST_V2:
        raise HeaderError(f"a header of more than {LONGEST_V2} bytes")
    # With an unspecified protocol, the addresses are unspecified as well.
    if protocol and length < _V2_ADDRESSES[family]:
        raise HeaderError("no room for its addresses")
    if len(data) < size:
        return None
    if not protocol or family not in (1, 2):
        return Header(size)
    width = 4 if family == 1 else 16
    ports = 16 + 2 * width
    return Header(
        size,
        (_v2_host(data[16 : 16 + width]), int.from_bytes(data[ports : ports + 2])),
        (_v2_host(data[16 + width : ports]), int.from_bytes(data[ports + 2 : ports + 4])),
        _is_encrypted(data[ports + 4 : size]),
    )


def _is_encrypted(extensions: bytes) -> bool:
    """Return whether the TLVs behind the addresses say that the client uses TLS. Malformed ones say nothing."""
    while len(extensions) >= 3:
        end = 3 + int.from_bytes(extensions[1:3])
        if extensions[0] == _SSL:
            return 8 <= end <= len(extensions) and bool(extensions[3] & _CLIENT_SSL)
        extensions = extensions[end:]
    return False


def _v2_host(packed: bytes) -> str:
    return _plain(ipaddress.ip_address(packed))


def _plain(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(host, "ipv4_mapped", None) or host)
