"""The rules of one room: who founded it and operates it, who may enter and who may speak."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Protocol

from netsvc.services.chat.names import ChatError, name_key
from netsvc.services.chat.store.interface import Ban, RoomRecord

__all__ = [
    "ADMIT",
    "BAN",
    "EXCEPT",
    "MODES",
    "MUTE",
    "Effect",
    "EntryError",
    "Role",
    "Rules",
    "applies",
    "describe",
    "parse_target",
]

#: What a mode does, by its name.
MODES = {
    "invite": "only invited members may enter",
    "registered": "only members with an account may enter",
    "moderated": "only operators may speak",
    "topic": "only operators may change the topic",
    "secret": "the room is not listed",
    "outside": "members of the chat that are not in the room may speak in it",
}
#: The modes with a value, which are written `key:VALUE`, and what they do.
VALUED_MODES = {
    "key": "who enters must know the key",
    "limit": "so many members may be in the room",
}
#: Characters of a key.
LONGEST_KEY = 64

#: Bans, operators and invitations of one room.
MOST_BANS, MOST_OPERATORS, MOST_INVITED = 100, 50, 100

#: The effects of a ban, which its `kind` begins with: who may not enter, who may not speak, to whom no ban and mute
#: applies, and who needs no invitation.
Effect = str
BAN, MUTE, EXCEPT, ADMIT = "ban", "mute", "except", "admit"


class EntryError(ChatError):
    """A member may not enter a room. `reason` is banned, full, or the mode that keeps it out."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Role(IntEnum):
    """What a member is in a room. A greater one is not subject to a smaller one."""

    MEMBER = 0
    OPERATOR = 1
    FOUNDER = 2
    #: An operator of the whole chat.
    SERVER = 3


class _Account(Protocol):
    @property
    def key(self) -> str: ...


class _Member(Protocol):
    """A member, as its rules see it."""

    key: str
    peer: str

    @property
    def account(self) -> _Account | None: ...
    @property
    def mask(self) -> str: ...


class Rules:
    """The rules of one room. An operator without an account is one until it leaves the room."""

    __slots__ = (
        "bans",
        "founder",
        "invited",
        "is_restricted",
        "key",
        "limit",
        "modes",
        "operators",
        "present",
        "voiced",
    )

    def __init__(self) -> None:
        #: The key of the account that registered the room.
        self.founder = ""
        #: The keys of the accounts that operate it.
        self.operators: set[str] = set()
        #: Members that operate it until they leave.
        self.present: set[Any] = set()
        #: Members that may speak, whatever the modes, until they leave.
        self.voiced: set[Any] = set()
        self.modes: frozenset[str] = frozenset()
        #: What who enters must know, and how many may be in it; empty and 0 for no such rule.
        self.key = ""
        self.limit = 0
        self.bans: list[Ban] = []
        #: The keys of invited accounts and members, the longest invited first.
        self.invited: dict[str, None] = {}
        #: Whether not everyone in the room may speak. Asked for every message.
        self.is_restricted = False

    def restore(self, record: RoomRecord) -> None:
        """Take the rules of a record."""
        self.founder, self.bans = record.founder, list(record.bans)
        self.operators = set(record.operators)
        self.set_modes(record.modes)

    @property
    def all_modes(self) -> frozenset[str]:
        """The modes, those with a value (`key:VALUE`) as well."""
        valued = {"key": self.key, "limit": str(self.limit or "")}
        return self.modes | {f"{name}:{value}" for name, value in valued.items() if value}

    def role(self, member: _Member) -> Role:
        """Return what a member is in the room, apart from an operator of the chat."""
        if member.account is not None and member.account.key == self.founder:
            return Role.FOUNDER
        operates = member in self.present or (member.account is not None and member.account.key in self.operators)
        return Role.OPERATOR if operates else Role.MEMBER

    def set_operator(self, member: Any, operates: bool) -> None:
        """Make a member an operator, or no operator; with an account, for good. Raises `ChatError`."""
        key = member.account.key if member.account is not None else None
        if not operates:
            self.present.discard(member)
            self.operators.discard(key or "")
            return
        if len(self.operators) + len(self.present) >= MOST_OPERATORS:
            raise ChatError(f"the room has {MOST_OPERATORS} operators, which is the limit")
        if key is None:
            self.present.add(member)
        else:
            self.operators.add(key)

    def invite(self, member: _Member) -> None:
        """Let a member enter in spite of modes and bans, once."""
        self.invited.pop(_identity(member), None)
        self.invited[_identity(member)] = None
        if len(self.invited) > MOST_INVITED:
            del self.invited[next(iter(self.invited))]

    def is_invited(self, member: _Member) -> bool:
        """Return whether a member has an invitation that it has not used."""
        return _identity(member) in self.invited

    def check_entry(self, member: _Member, name: str, now: float, key: str = "", count: int = 0) -> None:
        """Raise `EntryError` if a member may not enter the room `name`, which has `count` members."""
        if self.role(member) or self.is_invited(member):
            return
        if found := self.find(BAN, member, now):
            raise EntryError("banned", f"you are banned from {name}{_until(found, now)}{_because(found)}")
        if "invite" in self.modes and self.find(ADMIT, member, now) is None:
            raise EntryError("invite", f"{name} is for invited members; ask one of its operators for /invite")
        if "registered" in self.modes and member.account is None:
            raise EntryError("registered", f"{name} is for members with an account; /register PASSWORD makes one")
        if self.key and key != self.key:
            raise EntryError("key", f"{name} has a key; /join {name} KEY")
        if self.limit and count >= self.limit:
            raise EntryError("full", f"{name} is full: it is for {self.limit} members")

    def entered(self, member: _Member) -> None:
        """Note that a member has used its invitation."""
        self.invited.pop(_identity(member), None)

    def check_speech(self, member: _Member, name: str, now: float) -> None:
        """Raise `ChatError` if a member may not speak in the room `name`."""
        if self.role(member) or member in self.voiced:
            return
        if "moderated" in self.modes:
            raise ChatError(f"not sent: only the operators of {name} may speak there now")
        if found := self.find(MUTE, member, now):
            raise ChatError(f"not sent: you are muted in {name}{_until(found, now)}{_because(found)}")

    def find(self, effect: Effect, member: _Member, now: float) -> Ban | None:
        """Return the ban with that effect that a member is subject to, if there is one."""
        found = next((ban for ban in self.bans if ban.kind.startswith(effect) and applies(ban, member, now)), None)
        if found is None or effect in (EXCEPT, ADMIT):
            return found
        return None if self.find(EXCEPT, member, now) else found

    def add(self, ban: Ban, now: float) -> None:
        """Add a ban in the place of an equal one. Raises `ChatError`."""
        kept = [each for each in self.bans if not _is_over(each, now) and not _is_same(each, ban)]
        if len(kept) >= MOST_BANS:
            raise ChatError(f"the room has {MOST_BANS} bans, which is the limit; /unban lifts one")
        self.bans = [*kept, ban]
        self._changed()

    def lift(self, effect: Effect, kind: str, pattern: str) -> bool:
        """Remove a ban; return whether there was one."""
        kept = [each for each in self.bans if (each.kind, each.pattern) != (f"{effect} {kind}", pattern)]
        found = len(kept) < len(self.bans)
        self.bans = kept
        self._changed()
        return found

    def set_modes(self, modes: Iterable[str]) -> None:
        """Replace the modes, those with a value as well."""
        flags, valued = set(), {}
        for mode in modes:
            name, colon, value = mode.partition(":")
            if colon:
                valued[name] = value
            else:
                flags.add(mode)
        self.modes = frozenset(flags)
        self.key = valued.get("key", "")
        self.limit = int(valued.get("limit") or 0)
        self._changed()

    def lasting(self, now: float) -> tuple[Ban, ...]:
        """Return the bans that are not over."""
        return tuple(ban for ban in self.bans if not _is_over(ban, now))

    def _changed(self) -> None:
        self.is_restricted = "moderated" in self.modes or any(ban.kind.startswith(MUTE) for ban in self.bans)


def parse_target(text: str) -> tuple[str, str] | None:
    """Return the kind and the pattern of `account:NAME`, `address:NETWORK` or `name:NAME`; None for anything else.

    Raises `ChatError` for a network that is none.
    """
    kind, colon, pattern = text.partition(":")
    if not colon or kind not in {"account", "address", "name", "mask"}:
        return None
    if kind == "mask":
        return kind, pattern[:256].casefold()
    if kind != "address":
        return kind, name_key(pattern[:256])
    try:
        return kind, str(ipaddress.ip_network(pattern, strict=False))
    except ValueError:
        raise ChatError("an address is one such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32") from None


def describe(ban: Ban, now: float) -> str:
    """Return a ban in one line, for operators."""
    return f"{ban.kind}:{ban.pattern} by {ban.by}{_until(ban, now)}{_because(ban)}"


def _identity(member: _Member) -> str:
    return f"account {member.account.key}" if member.account is not None else f"name {member.key}"


def applies(ban: Ban, member: _Member, now: float) -> bool:
    """Return whether a member is subject to a ban now."""
    if _is_over(ban, now):
        return False
    kind = ban.kind.partition(" ")[2]
    if kind == "name":
        return member.key == ban.pattern
    if kind == "account":
        return member.account is not None and member.account.key == ban.pattern
    if kind == "mask":
        return matches(ban.pattern, member.mask)
    return _is_within(member.peer, ban.pattern)


def matches(pattern: str, text: str) -> bool:
    """Return whether a text has the form of a pattern, in which `*` is any text and `?` any character."""
    at = place = 0
    star, resume = -1, 0
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[place]):
            at += 1
            place += 1
        elif star >= 0:
            # The last star takes one more: earlier ones need not, so that it takes no more than the product of both.
            resume += 1
            at, place = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")


def _is_within(peer: str, network: str) -> bool:
    try:
        inner, outer = ipaddress.ip_network(peer), ipaddress.ip_network(network)
    except ValueError:
        # The peer of a UNIX socket has no address.
        return False
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    # A peer is a /64; a ban of one of its addresses is meant for the peer.
    return isinstance(outer, ipaddress.IPv6Network) and inner.overlaps(outer)


def _is_over(ban: Ban, now: float) -> bool:
    return ban.until is not None and ban.until <= now


def _is_same(one: Ban, other: Ban) -> bool:
    return (one.kind, one.pattern) == (other.kind, other.pattern)


def _until(ban: Ban, now: float) -> str:
    if ban.until is None:
        return ""
    left = max(1, round(ban.until - now))
    for seconds, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if left >= seconds:
            count = -(-left // seconds)
            return f" for {count} more {unit}{'s' if count > 1 else ''}"
    return ""


def _because(ban: Ban) -> str:
    return f": {ban.why}" if ban.why else ""
