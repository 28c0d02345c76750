"""Compares two plans: what stays, what comes and what goes. Plain data; `netsvc.host.transition` makes it so."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from netsvc.address import Address
from netsvc.plan import Listener, Plan

__all__ = ["Difference", "as_started", "compare", "describe_changes", "may_clash", "same_port", "same_socket"]


@dataclass(frozen=True)
class Difference:
    """What has to be done so that a process which runs one plan runs another.

    Listeners are numbers, their places in their plans: `kept` has pairs of the old and the new one, for those that
    keep their open port. `closed` is of the old plan, `opened` of the new one. Uses are their keys: `same` are those
    that go on as they are, `changed` those of another kind or with other settings, `added` and `gone` the rest.
    """

    kept: tuple[tuple[int, int], ...]
    closed: tuple[int, ...]
    opened: tuple[int, ...]
    same: frozenset[str]
    changed: frozenset[str]
    added: frozenset[str]
    gone: frozenset[str]


def same_port(address: Address) -> Hashable:
    """Return what is equal for two addresses if one open port can serve for both, whatever is behind it.

    Certificates, and who is trusted with PROXY headers, can change for the next connections. Whether there are headers
    cannot: they are read by what the port has.
    """
    # `01` is a port like `1`; what is an endpoint's own has to be the same in every letter.
    text = "" if address.scheme == "inet" else address.place
    arguments = tuple(sorted(address.arguments.items()))
    return address.kind, address.scheme, address.host, address.port, arguments, address.proxy is None, text


def same_socket(old: Address, new: Address) -> bool:
    """Tell whether both are the same host and port, whatever stands around the protocol (TLS, PROXY)."""
    return bool(new.port) and (old.kind, old.host, old.port) == (new.kind, new.host, new.port)


def may_clash(old: Address, port: int, new: Address) -> bool:
    """Tell whether the socket of `old`, whose real port is `port` (0: none), may be in the way of that of `new`.

    A host's name is not resolved here: it may be any.
    """
    if old.kind != new.kind:
        return False
    if new.port and port:
        return new.port == port
    return old.scheme != "inet" and new.scheme != "inet" and bool(_words(old) & _words(new))


def _words(address: Address) -> set[str]:
    """List what may be a path or a port in an endpoint."""
    words = {word.rpartition("=")[2] for word in address.place.split(":")[1:]}
    return {word for word in words if "/" in word or (word.isdecimal() and int(word))}


def compare(old: Plan, new: Plan) -> Difference:
    """Compare two plans."""
    free: dict[Hashable, list[int]] = {}
    for place, listener in enumerate(old.listeners):
        free.setdefault(same_port(listener.address), []).append(place)
    pairs: dict[int, int] = {}
    # Of several free ports of port 0, each shall go on with what it has.
    for alike in (_same_everything, _same_protocol, lambda one, other: True):
        for place, listener in enumerate(new.listeners):
            candidates = free.get(same_port(listener.address), [])
            match = next((each for each in candidates if alike(old.listeners[each], listener)), None)
            if place not in pairs and match is not None:
                candidates.remove(match)
                pairs[place] = match
    kept = set(pairs.values())
    same = {
        key
        for key in old.uses.keys() & new.uses.keys()
        if (old.uses[key].service, old.uses[key].adhoc, old.uses[key].settings)
        == (new.uses[key].service, new.uses[key].adhoc, new.uses[key].settings)
    }
    return Difference(
        kept=tuple((pairs[place], place) for place in sorted(pairs)),
        closed=tuple(place for place in range(len(old.listeners)) if place not in kept),
        opened=tuple(place for place in range(len(new.listeners)) if place not in pairs),
        same=frozenset(same),
        changed=frozenset(old.uses.keys() & new.uses.keys() - same),
        added=frozenset(new.uses.keys() - old.uses.keys()),
        gone=frozenset(old.uses.keys() - new.uses.keys()),
    )


def _same_everything(one: Listener, other: Listener) -> bool:
    return _same_protocol(one, other) and _envelope(one) == _envelope(other)


def _envelope(listener: Listener) -> tuple[object, object]:
    """Return what stands around the protocol."""
    return listener.address.tls, listener.address.proxy


def _same_protocol(one: Listener, other: Listener) -> bool:
    return (one.use, one.protocol) == (other.use, other.protocol)


def describe_changes(old: Plan, new: Plan, difference: Difference) -> str:
    """Say in one line what changed, for whoever asked for it."""
    counts = {"kept": len(difference.kept), "opened": len(difference.opened), "closed": len(difference.closed)}
    parts: list[str] = []
    for what, count in counts.items():
        if count:
            noun = "" if parts else "listener " if count == 1 else "listeners "
            parts.append(f"{count} {noun}{what}")
    parts = parts or ["no listeners"]
    changed = [f"options of {key}" for key in sorted(difference.changed)]
    changed += [f"limits of {key}" for key in sorted(_with_other_limits(old, new, difference))]
    changed += [f"what listens on {new.listeners[place].address.place}" for place in _with_others(old, new, difference)]
    changed += [f"TLS or PROXY of {place}" for place in _with_other_envelopes(old, new, difference)]
    changed += ["limits of the process"] if old.limits != new.limits else []
    changed += ["twistd plugins"] if old.twistd != new.twistd else []
    changed += [f"drain {new.drain:g} s"] if old.drain != new.drain else []
    changed += [
        f"drain of {key} {new.uses[key].drain_seconds(new.drain):g} s"
        for key in sorted(old.uses.keys() & new.uses.keys())
        if old.uses[key].drain != new.uses[key].drain
    ]
    changed += [f"{new.workers} workers"] if old.workers != new.workers else []
    changed += ["the admin page"] if old.admin != new.admin else []
    return f"{', '.join(parts)}{'; changed: ' if changed else ''}{', '.join(changed)}"


def as_started(old: Plan, new: Plan) -> tuple[Plan, str]:
    """Return a plan with what a process cannot change while it runs, and what is to be said of that."""
    fixed = {name: getattr(old, name) for name in ("log", "access", "state")}
    changed = [name for name, value in fixed.items() if value != getattr(new, name)]
    hint = f"; as before, until it is started anew or netsvc upgrade: {', '.join(changed)}" if changed else ""
    return replace(new, log=old.log, access=old.access, state=old.state), hint


def _with_other_limits(old: Plan, new: Plan, difference: Difference) -> set[str]:
    keys = {key for key in old.uses.keys() & new.uses.keys() if old.uses[key].limits != new.uses[key].limits}
    pairs = [(old.listeners[one], new.listeners[other]) for one, other in difference.kept]
    return keys | {other.use for one, other in pairs if one.limits != other.limits}


def _with_others(old: Plan, new: Plan, difference: Difference) -> list[int]:
    """List the kept listeners behind which there is now another protocol, or another service."""
    return [other for one, other in difference.kept if not _same_protocol(old.listeners[one], new.listeners[other])]


def _with_other_envelopes(old: Plan, new: Plan, difference: Difference) -> list[str]:
    pairs = [(old.listeners[one], new.listeners[other]) for one, other in difference.kept]
    return [other.label for one, other in pairs if _envelope(one) != _envelope(other)]
