"""Compares two plans: which listeners and services are kept, opened, closed or changed.

`netsvc.server.transition` applies the difference.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from netsvc.plan.address import Address
from netsvc.plan.plan import Listener, Plan


@dataclass(frozen=True)
class Difference:
    """The changes from one plan to another.

    Listeners are indices into their plans: `kept` has pairs (old, new) that keep their open port, `closed` has indices
    into the old plan, `opened` into the new one. Services are keys: `same` are unchanged, `changed` have another kind
    or other settings, `added` are only in the new plan, `gone` only in the old one.
    """

    kept: tuple[tuple[int, int], ...]
    closed: tuple[int, ...]
    opened: tuple[int, ...]
    same: frozenset[str]
    changed: frozenset[str]
    added: frozenset[str]
    gone: frozenset[str]


def same_port(address: Address) -> Hashable:
    """Return a key that is equal for two addresses if one open port can serve both, with any protocol behind it.

    Certificates and the trusted sources of PROXY headers can change for new connections. Whether PROXY headers are
    expected cannot: the factory of the port reads them.
    """
    # `01` is the same port as `1`; other endpoint strings must be identical.
    text = "" if address.scheme == "inet" else address.endpoint
    arguments = tuple(sorted(address.arguments.items()))
    return address.kind, address.scheme, address.host, address.port, arguments, address.proxy is None, text


def same_socket(old: Address, new: Address) -> bool:
    """Return whether both have the same host and port, whatever their TLS and PROXY settings."""
    return bool(new.port) and (old.kind, old.host, old.port) == (new.kind, new.host, new.port)


def may_clash(old: Address, port: int, new: Address) -> bool:
    """Return whether the socket of `old`, with the real port `port` (0: none), may prevent binding the address `new`.

    Host names are not resolved: any two are treated as possibly the same host.
    """
    if old.kind != new.kind:
        return False
    if new.port and port:
        return new.port == port
    return old.scheme != "inet" and new.scheme != "inet" and bool(_paths_and_ports(old) & _paths_and_ports(new))


def _paths_and_ports(address: Address) -> set[str]:
    """Return the arguments of an endpoint string that may be a path or a port number."""
    values = {argument.rpartition("=")[2] for argument in address.endpoint.split(":")[1:]}
    return {value for value in values if "/" in value or (value.isdecimal() and int(value))}


def compare(old: Plan, new: Plan) -> Difference:
    """Return the difference between two plans."""
    free: dict[Hashable, list[int]] = {}
    for index, listener in enumerate(old.listeners):
        free.setdefault(same_port(listener.address), []).append(index)
    pairs: dict[int, int] = {}
    # Among several old listeners on port 0, prefer one that needs no change.
    for alike in (_same_everything, _same_protocol, lambda one, other: True):
        for index, listener in enumerate(new.listeners):
            candidates = free.get(same_port(listener.address), [])
            match = next((each for each in candidates if alike(old.listeners[each], listener)), None)
            if index not in pairs and match is not None:
                candidates.remove(match)
                pairs[index] = match
    kept = set(pairs.values())
    same = {
        key
        for key in old.uses.keys() & new.uses.keys()
        if (old.uses[key].service, old.uses[key].adhoc, old.uses[key].settings)
        == (new.uses[key].service, new.uses[key].adhoc, new.uses[key].settings)
    }
    return Difference(
        kept=tuple((pairs[index], index) for index in sorted(pairs)),
        closed=tuple(index for index in range(len(old.listeners)) if index not in kept),
        opened=tuple(index for index in range(len(new.listeners)) if index not in pairs),
        same=frozenset(same),
        changed=frozenset(old.uses.keys() & new.uses.keys() - same),
        added=frozenset(new.uses.keys() - old.uses.keys()),
        gone=frozenset(old.uses.keys() - new.uses.keys()),
    )


def _same_everything(one: Listener, other: Listener) -> bool:
    return _same_protocol(one, other) and _envelope(one) == _envelope(other)


def _envelope(listener: Listener) -> tuple[object, object]:
    """Return the layers between the port and the protocol: TLS and PROXY."""
    return listener.address.tls, listener.address.proxy


def _same_protocol(one: Listener, other: Listener) -> bool:
    return (one.use, one.protocol) == (other.use, other.protocol)


def describe_changes(old: Plan, new: Plan, difference: Difference) -> str:
    """Return a one-line summary of the changes."""
    counts = {"kept": len(difference.kept), "opened": len(difference.opened), "closed": len(difference.closed)}
    parts: list[str] = []
    for what, count in counts.items():
        if count:
            noun = "" if parts else "listener " if count == 1 else "listeners "
            parts.append(f"{count} {noun}{what}")
    parts = parts or ["no listeners"]
    changed = [f"options of {key}" for key in sorted(difference.changed)]
    changed += [f"limits of {key}" for key in sorted(_with_other_limits(old, new, difference))]
    changed += [f"what listens on {address.endpoint}" for address in _with_others(old, new, difference)]
    changed += [f"TLS or PROXY of {label}" for label in _with_other_envelopes(old, new, difference)]
    changed += ["limits of the process"] if old.limits != new.limits else []
    changed += ["twistd plugins"] if old.twistd != new.twistd else []
    changed += [f"drain {new.drain:g} s"] if old.drain != new.drain else []
    changed += [
        f"drain of {key} {new.uses[key].drain_seconds(new.drain):g} s"
        for key in sorted(old.uses.keys() & new.uses.keys())
        if old.uses[key].drain != new.uses[key].drain
    ]
    changed += [f"{new.workers} workers"] if old.workers != new.workers else []
    changed += [f"debug {'on' if new.debug else 'off'}"] if old.debug != new.debug else []
    changed += ["the admin page"] if old.admin != new.admin else []
    return f"{', '.join(parts)}{'; changed: ' if changed else ''}{', '.join(changed)}"


def as_started(old: Plan, new: Plan) -> tuple[Plan, str]:
    """Return the new plan with the old values of settings that only a restart changes, and a hint that names them."""
    fixed = {name: getattr(old, name) for name in ("log", "access", "state")}
    changed = [name for name, value in fixed.items() if value != getattr(new, name)]
    hint = f"; unchanged until restart or netsvc upgrade: {', '.join(changed)}" if changed else ""
    return replace(new, log=old.log, access=old.access, state=old.state), hint


def _with_other_limits(old: Plan, new: Plan, difference: Difference) -> set[str]:
    keys = {key for key in old.uses.keys() & new.uses.keys() if old.uses[key].limits != new.uses[key].limits}
    pairs = [(old.listeners[one], new.listeners[other]) for one, other in difference.kept]
    return keys | {other.use for one, other in pairs if one.limits != other.limits}


def _with_others(old: Plan, new: Plan, difference: Difference) -> list[Address]:
    """List the addresses of the kept listeners that now have another protocol or service."""
    pairs = [(old.listeners[one], new.listeners[other]) for one, other in difference.kept]
    return [other.address for one, other in pairs if not _same_protocol(one, other)]


def _with_other_envelopes(old: Plan, new: Plan, difference: Difference) -> list[str]:
    pairs = [(old.listeners[one], new.listeners[other]) for one, other in difference.kept]
    return [other.label for one, other in pairs if _envelope(one) != _envelope(other)]
