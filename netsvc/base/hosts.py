"""The addresses and ports of peers: their usual form, and the key under which limits count them."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

#: The key of every host that is not an IP address. A PROXY header may contain any text; all such hosts share one key,
#: so that a client cannot get its own limits by inventing names.
UNKNOWN = "?"

#: The prefix of an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"
#: Peer keys cached. A flood from more peers costs one computation per address, and no more memory.
_PEERS_CACHED = 16384


def packed(host: str) -> bytes | None:
    """Return an address as 4 or 16 bytes without its scope; 4 for `::ffff:a.b.c.d`. None if it is not an address."""
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return None
    return address[12:] if address.startswith(_MAPPED) else address


@lru_cache(_PEERS_CACHED)
def peer_key(host: str) -> str:
    """Return the key under which limits count a host: an IPv4 address, an IPv6 /64 network, or `::1` for loopback."""
    address = packed(host)
    if address is None:
        return UNKNOWN
    if len(address) == 4:
        return inet_ntop(AF_INET, address)
    # One customer has at least 2**64 addresses (RFC 6177); a limit for each address would have no effect.
    return f"{inet_ntop(AF_INET6, address[:8] + bytes(8))}/64" if int.from_bytes(address) != 1 else "::1"


@lru_cache(_PEERS_CACHED)
def plain_host(host: str) -> str:
    """Return an address in its usual form, without `::ffff:` and scope; return any other host unchanged."""
    address = packed(host)
    if address is None:
        return host
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address: 127.0.0.0/8, also IPv4-mapped, or ::1."""
    address = packed(host)
    return address is not None and (address[0] == 127 if len(address) == 4 else int.from_bytes(address) == 1)


def is_local(key: str) -> bool:
    """Return whether a peer key is of this machine: loopback, or a user of a UNIX socket."""
    return key.startswith(("127.", "uid ")) or key in ("::1", "")


@cache
def ephemeral_ports() -> range:
    """Return the ports that the system gives to clients (ip(7)); its usual ones if they cannot be read."""
    try:
        lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("utf-8").split())
    except (OSError, ValueError):
        return range(32768, 61000)
    return range(lowest, highest + 1)
