"""Whom a ban is for, in IRC's words: `ann!*@*`, `*!*@192.0.2.0/24`, `~a:account`, and `~m:` before one that mutes."""

from __future__ import annotations

import ipaddress

from netsvc.services.chat.moderation import BanTarget
from netsvc.services.chat.names import name_key
from netsvc.services.chat.rules import BAN, MUTE, Effect
from netsvc.services.chat.text import clean_text

__all__ = ["ban_target", "full_mask", "shown_mask"]

LONGEST_MASK = 256


def full_mask(text: str) -> str:
    """Return a mask with all its three parts: `ann` is `ann!*@*`, and `*@host` `*!*@host`."""
    name, bang, rest = text.partition("!")
    if not bang:
        user, at, host = text.partition("@")
        return f"*!{user or '*'}@{host or '*'}" if at else f"{text or '*'}!*@*"
    user, _, host = rest.partition("@")
    return f"{name or '*'}!{user or '*'}@{host or '*'}"


def ban_target(effect: Effect, text: str) -> BanTarget:
    """Return whom a mask is for."""
    text = clean_text(text[:LONGEST_MASK])
    if text.startswith("~m:"):
        # An exception is one from bans and mutes.
        return ban_target(MUTE if effect == BAN else effect, text[3:])
    if text.startswith("~a:"):
        return BanTarget(effect, "account", name_key(text[3:]), text)
    mask = full_mask(text)
    name, _, rest = mask.partition("!")
    user, _, host = rest.partition("@")
    if rest == "*@*" and "*" not in name and "?" not in name:
        return BanTarget(effect, "name", name_key(name), mask)
    if name == user == "*":
        try:
            return BanTarget(effect, "address", str(ipaddress.ip_network(host, strict=False)), mask)
        except ValueError:
            pass
    return BanTarget(effect, "mask", f"{name_key(name)}!{user}@{host}".casefold(), mask)


def shown_mask(kind: str, pattern: str, *, mutes: bool = False) -> str:
    """Return whom a ban of a kind and pattern is for, as `ban_target` reads it."""
    shown = {"account": f"~a:{pattern}", "name": f"{pattern}!*@*", "address": f"*!*@{pattern}"}.get(kind, pattern)
    return f"~m:{shown}" if mutes else shown
