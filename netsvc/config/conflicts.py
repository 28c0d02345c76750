"""Finds addresses that the system would refuse at the start: two that cannot be bound together, or one alone."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

from netsvc.base.text import escape
from netsvc.base.values import Kind
from netsvc.config.admin_address import places
from netsvc.listen.sockets import is_dual, unix_path, unusable
from netsvc.listen.systemd import systemd_socket
from netsvc.plan.address import Address, parse_address, written_path
from netsvc.plan.plan import Plan

__all__ = ["Claim", "claims_of", "find_conflicts", "find_unusable"]

#: Stands for every interface.
_EVERY = ""
#: Endpoints that have another one at their end: `haproxy:tcp:9001`, Twisted's `tls:DIRECTORY:tcp:9001`.
_INNER = re.compile(r"(?<!\\):((?:tcp6?|ssl|unix|systemd):.*)")


@dataclass(frozen=True)
class Claim:
    """An address that is to be bound, the name of what binds it, and what begins an error line about it.

    The start goes on without an `optional` one that this machine does not have.
    """

    label: str
    address: Address
    place: str = ""
    optional: bool = False


def claims_of(plan: Plan) -> list[Claim]:
    """List what the listeners and the admin address of a plan bind."""
    claims = [Claim(each.label, each.address, each.origin) for each in plan.listeners]
    if plan.admin is not None:
        first, *others = places(plan.admin.address)
        claims.append(Claim("admin", first, plan.admin.origin))
        claims += [Claim("admin", each, plan.admin.origin, optional=True) for each in others]
    return claims


def find_conflicts(claims: Iterable[Claim]) -> Iterator[str]:
    """Write a line for each claim that cannot be bound because of an earlier one."""
    # By what only one can have, for IP sockets except for the host.
    taken: dict[Hashable, dict[str, Claim]] = {}
    for claim in claims:
        other = None
        for key, host in _sockets(claim.address):
            hosts = taken.setdefault(key, {})
            other = other or hosts.get(host) or hosts.get(_EVERY)
            if host == _EVERY:
                other = other or next(iter(hosts.values()), None)
            hosts.setdefault(host, claim)
        if other is not None:
            text = other.address.text
            at = f" ({text})" if text != claim.address.text else ""
            yield (
                f"{claim.place}{claim.address.text} is used twice, by {escape(other.label, 1000)}{at} and by "
                f"{escape(claim.label, 1000)}; choose another address for one of them"
            )


def find_unusable(claims: Iterable[Claim]) -> Iterator[str]:
    """Write a line for each claim that this machine cannot bind. Whether another process has it is not looked at."""
    for claim in claims:
        reason = "" if claim.optional else unusable(_innermost(claim.address))
        if reason:
            yield f"{claim.place}{claim.label} cannot listen on {claim.address.text}: {reason}"


def _innermost(address: Address) -> Address:
    """Return the address that is bound: the one at the end of an endpoint around another one."""
    inner = _INNER.search(address.endpoint)
    if inner is None or address.scheme in ("inet", "tcp", "tcp6", "ssl", "unix", "unixgram", "systemd"):
        return address
    try:
        return parse_address(inner[1], "stream")
    except ValueError:
        return address


def _sockets(address: Address) -> Iterator[tuple[Hashable, str]]:
    """Yield the sockets of an address: what only one can have, and the host. Port 0 is another one each time."""
    address = _innermost(address)
    kind, scheme = address.kind, address.scheme
    if scheme in ("inet", "tcp", "tcp6", "ssl"):
        if address.port:
            for version, host in _hosts(address):
                yield (kind, address.port, version), host
    elif scheme in ("unix", "unixgram"):
        yield _path_key(kind, unix_path(address)), _EVERY
    elif scheme == "systemd":
        name = address.arguments.get("name") or f"index {address.arguments.get('index')}"
        yield (kind, scheme, name), _EVERY
        yield from _passed(address)
    elif not re.search("[:=]0+(:|$)", address.endpoint):
        # An endpoint plugin, or stdio.
        yield (kind, address.endpoint), _EVERY


def _passed(address: Address) -> Iterator[tuple[Hashable, str]]:
    """Yield the same for the socket that systemd has passed, if it has: another address may have its port or path."""
    try:
        bound = systemd_socket(address)
    except (OSError, ValueError):
        return
    with bound:
        place = bound.getsockname()
        if bound.family == socket.AF_UNIX:
            yield _path_key(address.kind, written_path(os.fsdecode(place))), _EVERY
        else:
            host = None if is_dual(bound) else place[0]
            yield from _sockets(Address(address.text, address.kind, "inet", host, place[1]))


def _hosts(address: Address) -> Iterator[tuple[int, str]]:
    """Yield the IP versions and hosts of an address."""
    host = address.host
    # Twisted's endpoints serve IPv4 as well when they listen on every IPv6 interface.
    if host is None or (host == "::" and address.scheme != "inet"):
        yield from ((4, _EVERY), (6, _EVERY))
        return
    try:
        # Two sockets cannot be bound to one IPv4 group, at whatever interfaces they join it.
        ip = ipaddress.ip_address(host if ":" in host else host.partition("%")[0])
    except ValueError:
        # A name that has no address here.
        yield 4, host.lower()
    else:
        yield ip.version, _EVERY if ip.is_unspecified else str(ip)


def _path_key(kind: Kind, path: str) -> tuple[str, str]:
    """Return what only one UNIX socket can have: its path as the system sees it, or its abstract name, `@NAME`."""
    if path.startswith("@"):
        # These names are separate for streams and datagrams; paths of files are not.
        return kind, path
    directory, name = os.path.split(path)
    return "file", os.path.join(os.path.realpath(directory), name)
