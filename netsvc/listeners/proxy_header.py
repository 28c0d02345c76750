"""Reads the header of the PROXY protocol, version 1 or 2. Pure: bytes in, addresses out.

The protocol is HAProxy's proxy-protocol.txt; the sections named here are of that document.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["LONGEST_V1", "LONGEST_V2", "Endpoint", "Header", "HeaderError", "parse_header"]

#: A host and a port.
Endpoint = tuple[str, int]

#: Bytes of a header of version 1, its CRLF included (section 2.1).
LONGEST_V1 = 107
#: Bytes of a header of version 2: far more than any proxy sends of its own, and enough for a client's certificate.
LONGEST_V2 = 16 + 4096

_V1 = b"PROXY "
_V1_FAMILIES = {b"TCP4": 4, b"TCP6": 6}
#: Without heading zeroes (section 2.1).
_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_HIGHEST_PORT = 65535

_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL, _PROXY = 0, 1
#: Bytes of the addresses by their family (section 2.2): unspecified, IPv4, IPv6, UNIX.
_V2_ADDRESSES = (0, 12, 36, 216)
_V2_PROTOCOLS = 3


class HeaderError(ValueError):
    """What a connection begins with is no PROXY header; the text says in what way."""


@dataclass(frozen=True)
class Header:
    """A header of `size` bytes, and what it says: who opened the connection, and to which address.

    Both are None where it speaks of no other connection than the one that it came over (LOCAL, UNKNOWN), or of
    none that has IP addresses. An IPv4 address is written as such, whatever it came in.
    """

    size: int
    source: Endpoint | None = None
    destination: Endpoint | None = None


def parse_header(data: bytes) -> Header | None:
    """Read the header at the beginning of `data`; None means that there has to be more.

    Raises `HeaderError` as soon as no further bytes could make a header of these; that is the case for any
    `LONGEST_V2` bytes for which there is no other answer.
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
        # Whatever else stands in the line is to be ignored (section 2.1).
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
    # The interface of a link-local address means nothing on another machine.
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
    # Of a proxy's own connection even the family is to be ignored (section 2.2).
    family, protocol = divmod(0 if local else data[13], 16)
    if family >= len(_V2_ADDRESSES) or protocol >= _V2_PROTOCOLS:
        raise HeaderError("an unknown family or protocol")
    length = int.from_bytes(data[14:16])
    size = 16 + length
    if size > LONGEST_V2:
        raise HeaderError(f"a header of more than {LONGEST_V2} bytes")
    # An unspecified protocol makes the addresses unspecified as well.
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
    )


def _v2_host(packed: bytes) -> str:
    return _plain(ipaddress.ip_address(packed))


def _plain(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(host, "ipv4_mapped", None) or host)
