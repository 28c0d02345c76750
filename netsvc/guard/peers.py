"""Who a peer is, for limits and lists of networks: one name for each, however its address is written."""

from __future__ import annotations

from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

__all__ = ["UNKNOWN", "is_local", "packed", "peer_key", "plain_host"]

#: The key of every host that is no address. A PROXY header may say anything; no two such hosts are told apart, so
#: that nobody is given limits of his own by inventing names.
UNKNOWN = "?"

#: Before an IPv4 address in an IPv6 one (RFC 4291, section 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"
#: Peers remembered: a flood from more of them costs a look at each address, and no more memory.
_REMEMBERED = 16384


def packed(host: str) -> bytes | None:
    """Return the 4 or 16 bytes of an address, without its scope; 4 for `::ffff:a.b.c.d`. None if it is no address."""
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return None
    return address[12:] if address.startswith(_MAPPED) else address


@lru_cache(_REMEMBERED)
def peer_key(host: str) -> str:
    """Name the peer that a host counts as: an IPv4 address, an IPv6 network of 64 bits, `::1` for loopback."""
    address = packed(host)
    if address is None:
        return UNKNOWN
    if len(address) == 4:
        return inet_ntop(AF_INET, address)
    # One customer has 2**64 addresses at least (RFC 6177); a limit for each address would be none.
    return f"{inet_ntop(AF_INET6, address[:8] + bytes(8))}/64" if int.from_bytes(address) != 1 else "::1"


@lru_cache(_REMEMBERED)
def plain_host(host: str) -> str:
    """Write a host as its address is usually written, `::ffff:` and the scope taken off; unchanged if it is none."""
    address = packed(host)
    if address is None:
        return host
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def is_local(key: str) -> bool:
    """Tell whether a peer is on this machine: loopback, or the user of a UNIX socket."""
    return key.startswith(("127.", "uid ")) or key in ("::1", "")
