"""Writes a plan as JSON data, and reads it, for another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from netsvc.plan.address import TLS, Address, Proxy
from netsvc.plan.limits import Hours
from netsvc.plan.plan import AdminUse, Listener, Plan, ServiceUse, TwistdUse

_CLASSES = {
    each.__name__: each for each in (Plan, Listener, ServiceUse, TwistdUse, AdminUse, Address, TLS, Proxy, Hours)
}
_COLLECTIONS = {"tuple": tuple, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """Return what `json.dumps` takes for a plan or a part of one. What JSON has no form for becomes `{TYPE: …}`."""
    kind = type(value).__name__
    if is_dataclass(value):
        return {kind: {each.name: encode(getattr(value, each.name)) for each in fields(value)}}
    if kind in _COLLECTIONS:
        return {kind: [encode(each) for each in value]}
    if isinstance(value, Mapping):
        return {"dict": {name: encode(each) for name, each in value.items()}}
    return [encode(each) for each in value] if isinstance(value, list) else value


def decode(read: Any) -> Any:
    """Return what `encode` was given. Raises `ValueError`; fields that are not known here are ignored."""
    if isinstance(read, list):
        return [decode(each) for each in read]
    if not isinstance(read, dict):
        return read
    try:
        [(kind, content)] = read.items()
        if kind == "dict":
            return {name: decode(each) for name, each in content.items()}
        if kind in _COLLECTIONS:
            return _COLLECTIONS[kind](decode(each) for each in content)
        made: Any = _CLASSES[kind]
        known = {each.name for each in fields(made)}
        return made(**{name: decode(each) for name, each in content.items() if name in known})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a plan: {error!r}") from error
